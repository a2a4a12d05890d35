"""What a study needs before it runs: memory of each rank (`memory`, `table`); hours, tokens, requests, price and disk
of all its jobs (`study`), from FLOPs and bytes (`work`) and stated or measured speeds (`speed`, `gpus`, `released`).
"""
