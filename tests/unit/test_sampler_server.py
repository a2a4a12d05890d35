from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch

from tests.unit.test_sampler import spec_of
from uniapl.config import ConfigError, MachineSpec
from uniapl.layers import load_study, validate
from uniapl.sampler import resolve_kind
from uniapl.serve import command
from uniapl.weight_channel import Channel, ChannelError, address_towards, open_store


def machine_of(**fields: object) -> MachineSpec:
    return validate(MachineSpec, [("--config", fields)], ("machine",))


def test_a_server_is_asked_for_by_config_and_its_address_belongs_to_the_machine() -> None:
    study = load_study("smoke", {"sampler": {"kind": "server"}, "machine": {"servers": ["http://10.0.0.7:8000"]}})
    assert resolve_kind(study.sampler, study.machine) == "server"
    assert "servers" not in study.sampler.model_dump()
    with pytest.raises(ValueError, match=r"machine\.servers is empty; start one \(python -m uniapl\.serve\)"):
        resolve_kind(spec_of("server"), MachineSpec.model_validate({}))


@pytest.mark.parametrize("address", ["10.0.0.7:8000", "http://10.0.0.7:8000/v1", "ftp://10.0.0.7"])
def test_an_address_that_is_no_url_of_a_server_is_named(address: str) -> None:
    with pytest.raises(ConfigError, match=rf"machine\.servers\.0 = '{address}'"):
        machine_of(servers=[address])


def test_ranks_that_cannot_be_cut_into_groups_are_refused() -> None:
    assert machine_of(ranks=4, tensor_parallel=2).tensor_parallel == 2
    with pytest.raises(ConfigError, match="the 3 ranks of a node cannot be cut into groups of tensor_parallel = 2"):
        machine_of(ranks=3, tensor_parallel=2)
    with pytest.raises(ValueError, match=r"machine\.tensor_parallel = 2 is of vLLM alone, not of hf"):
        resolve_kind(spec_of("hf"), machine_of(ranks=2, tensor_parallel=2))


def test_a_server_listens_on_this_machine_alone_and_the_users_options_come_last(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    words = command([str(tmp_path), "--port", "8000", "--block-size", "64"], on_gpu=False)
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[-2:] == ["--block-size", "64"]
    assert "--enforce-eager" not in command([str(tmp_path), "--port", "8000"], on_gpu=True)
    with pytest.raises(ValueError, match="is no checkpoint"):
        command([str(tmp_path / "nothing"), "--port", "8000"], on_gpu=False)


def test_tensors_arrive_bit_for_bit_beside_the_default_group_and_a_lost_receiver_is_an_error() -> None:
    store, port = open_store("127.0.0.1")
    sent = {
        "a": torch.randn(3, 5),
        "b.weight": torch.randn(7).bfloat16(),
        "empty": torch.zeros(0, 4),
        "one": torch.ones(()),
    }

    def receiver() -> tuple[Channel, dict[str, torch.Tensor]]:
        assert address_towards("127.0.0.1", port) == "127.0.0.1"
        end = Channel(
            torch.distributed.TCPStore("127.0.0.1", port), rank=1, size=2, address="127.0.0.1",
            device=torch.device("cpu"), timeout_seconds=20,
        )  # fmt: skip
        return end, dict(end.receive())

    with ThreadPoolExecutor(1) as pool:
        receiving = pool.submit(receiver)
        trainer = Channel(store, rank=0, size=2, address="127.0.0.1", device=torch.device("cpu"), timeout_seconds=20)
        trainer.send(sent.items())
        end, received = receiving.result()
    assert list(received) == list(sent)
    assert all(received[n].dtype == t.dtype and torch.equal(received[n], t) for n, t in sent.items())
    assert not torch.distributed.is_initialized()
    end.close()
    with pytest.raises(ChannelError):
        trainer.send([("large", torch.zeros(10_000_000))])


def test_the_store_listens_on_one_address_only() -> None:
    store, port = open_store("127.0.0.1")
    listening = [
        c.laddr.ip
        for c in psutil.Process().net_connections("tcp")
        if c.status == psutil.CONN_LISTEN and c.laddr.port == port
    ]
    assert listening == ["127.0.0.1"]
    del store
