"""Pairs on Ray: `python pairs_on_ray.py TEACHER FOLDER SHARDS`, paths absolute.

Workers have other working directories, so the paths are the same on all machines.
"""

import sys
from pathlib import Path

import ray

from data.pair_settings import PairSettings
from data.writer import generate_shard

if __name__ == "__main__":
    teacher, folder, shards = sys.argv[1:]
    settings = PairSettings(teacher=teacher, output_dir=Path(folder))
    ray.init()  # the cluster of RAY_ADDRESS, or this machine
    gpus = min(1, int(ray.cluster_resources().get("GPU", 0)))  # asking for one more waits for ever
    make = ray.remote(num_gpus=gpus)(generate_shard)
    device = "cuda" if gpus else "cpu"
    records = ray.get([make.remote(settings, shard, device) for shard in range(int(shards))])
    print(f"{sum(record.count for record in records)} pairs")
