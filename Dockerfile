# The environment for GPUs (environment.yml: CUDA builds of PyTorch and vLLM) with a copy of this project, which a checkout
# mounted in its place replaces:
#   docker build --tag uniapl:0.1.0 .
#   docker run --gpus all --shm-size 16g --volume "$PWD":/work/uniapl uniapl:0.1.0 snakemake --cores all --config scale=paper
FROM condaforge/miniforge3:25.11.0-0

# bubblewrap runs what a model wrote, gcc is what Triton compiles with, git names the commit in manifests.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends bubblewrap gcc git libc6-dev procps \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/conda/envs/uniapl/bin:$PATH
COPY environment.yml requirements/data.txt /opt/uniapl/
RUN export PIP_NO_CACHE_DIR=1 \
    && conda env create --file /opt/uniapl/environment.yml \
    && pip install --no-deps --requirement /opt/uniapl/data.txt \
    && conda clean --all --yes

COPY --chown=1000:1000 . /work/uniapl
RUN pip install --no-cache-dir --no-deps --editable /work/uniapl

# An ordinary user; the base image may have one with this number.
RUN useradd --uid 1000 --non-unique --create-home uniapl
USER 1000:1000
ENV HOME=/home/uniapl USER=uniapl
WORKDIR /work/uniapl
CMD ["bash"]
