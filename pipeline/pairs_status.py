"""How far a data set of pairs is: `python -m pipeline.pairs_status PAIRS [--json]`.

It reads the names and times of the folder's files, and the claims of the jobs that are at work
(data/claims.py), so it may be called at any time, as often as one likes, and next to any number of
jobs. Whether what is written is right is for verify_pairs.py to say.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import tyro
from tqdm import tqdm

from data.claims import Claim, read_claims
from data.manifest import read_manifest
from data.places import Place, open_site
from data.site import Site
from get.errors import InputError
from pipeline import cli
from pipeline.recipes.settings_make import positive

RECENT = 32  # finished shards whose times give the rate; at least two of each job at work
SHOWN = 20  # lines and ranges of shards that are printed


@dataclass(frozen=True, kw_only=True)
class StatusConfig:
    """Say how far a data set of pairs is.

    Attributes:
        pairs: The data set: a local folder, or its address in an object store.
        num_pairs: Pairs that it shall have; None is what the jobs at work were asked for, or else
            as many as its last shard needs.
        json: Print JSON.
    """

    pairs: tyro.conf.Positional[str]
    num_pairs: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        """Refuse numbers below 1."""
        if self.num_pairs is not None:
            positive(num_pairs=self.num_pairs)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A claim on a shard that is not finished; times in seconds."""

    shard: int
    job: str
    seconds: float
    seconds_since_renewal: float


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job at work: its shards, how many it had written before, and its rate since it began."""

    job: str
    shards: list[int]
    written: int
    seconds: float | None
    pairs_per_second: float | None


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a data set is.

    Attributes:
        shards: Shards that it shall have.
        known: Whether somebody has said so; otherwise its last shard counts.
        pairs_per_shard: Pairs in each of them.
        done: Finished shards.
        in_work: Shards that jobs work on.
        stale: Claims of jobs that are gone; the next job takes them over. Their shards are missing.
        missing: Shards that nobody works on, as ranges: first and last.
        pairs_per_second: Of all jobs, from the last finished shards; None if there are too few.
        seconds_left: None if nobody works or there is no rate.
        jobs: The jobs at work.
    """

    shards: int
    known: bool
    pairs_per_shard: int
    done: int
    in_work: list[Work]
    stale: list[Work]
    missing: list[tuple[int, int]]
    pairs_per_second: float | None
    seconds_left: float | None
    jobs: list[Job]


def main(config: StatusConfig) -> None:
    """Print it."""
    status = look(site := open_site(config.pairs), config.num_pairs)
    if config.json:
        print(json.dumps(asdict(status), indent=2))
    else:
        print("\n".join(lines(status, site)))


def look(place: Place, num_pairs: int | None = None) -> Status:
    """Return how far a data set is, in a place that jobs write to.

    Raises:
        InputError: If there is none, or the number of pairs does not fit it.
    """
    site = open_site(place)
    size = read_manifest(site.store).pairs_per_shard
    if num_pairs is not None and num_pairs % size:
        raise InputError(f"expected num_pairs as a multiple of {size}, got {num_pairs}")
    # Claims first: a shard that is finished in between is done, not missing.
    everyone = read_claims(site)
    finished = site.finished_times()
    now = site.clock()
    claims = [claim for claim in everyone if claim.shard not in finished]
    asked = num_pairs // size if num_pairs else max((c.shards for c in claims), default=0)
    total = asked or max([*finished, *(c.shard for c in claims)], default=-1) + 1
    working = [c for c in claims if not c.stale and c.shard < total]
    done = sum(shard < total for shard in finished)
    rate = rate_of(finished, working, size)
    known = {*finished, *(c.shard for c in working)}
    gone = [c for c in claims if c.stale and c.shard < total]
    return Status(
        shards=total,
        known=asked > 0,
        pairs_per_shard=size,
        done=done,
        in_work=[work_of(c, now) for c in working],
        stale=[work_of(c, now) for c in gone],
        missing=gaps(known, total),
        pairs_per_second=rate,
        seconds_left=(total - done) * size / rate if rate and working else None,
        jobs=jobs_of(working, now, size),
    )


def rate_of(finished: dict[int, float], working: Sequence[Claim], size: int) -> float | None:
    """Return pairs per second: of the jobs at work if there are any, otherwise of the last ones."""
    began = min((c.started for c in working if c.started is not None), default=0.0)
    times = sorted(time for time in finished.values() if time >= began)
    times = times[-max(RECENT, 2 * len(working)) :]
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) * size / (times[-1] - times[0])


def work_of(claim: Claim, now: float) -> Work:
    """Return what is shown of a claim."""
    return Work(
        shard=claim.shard,
        job=claim.owner.name,
        seconds=round(max(0.0, now - claim.owner.since), 1),
        seconds_since_renewal=round(max(0.0, now - claim.owner.renewed), 1),
    )


def jobs_of(working: Sequence[Claim], now: float, size: int) -> list[Job]:
    """Return the jobs that have claims."""
    jobs: dict[str, list[Claim]] = {}
    for claim in working:
        jobs.setdefault(claim.owner.name, []).append(claim)
    found = []
    for name, claims in sorted(jobs.items()):
        newest = max(claims, key=lambda claim: claim.written)
        seconds = None if newest.started is None else max(0.0, now - newest.started)
        found.append(
            Job(
                job=name,
                shards=[claim.shard for claim in claims],
                written=newest.written,
                seconds=seconds and round(seconds, 1),
                pairs_per_second=newest.written * size / seconds if seconds else None,
            )
        )
    return found


def gaps(known: set[int], total: int) -> list[tuple[int, int]]:
    """Return the ranges of the shards below `total` that are not known: first and last."""
    edges = [-1, *sorted(shard for shard in known if shard < total), total]
    return [(a + 1, b - 1) for a, b in pairwise(edges) if b > a + 1]


def lines(status: Status, site: Site) -> list[str]:
    """Return the status as text."""
    missing = sum(last - first + 1 for first, last in status.missing)
    head = f"{status.done} of {status.shards} shards are written to {site}"
    head += f", {len(status.in_work)} in work, {missing} missing"
    if status.pairs_per_second:
        head += f"; {rate_text(status.pairs_per_second)}"
    if status.seconds_left is not None:
        head += f", {span(status.seconds_left)} left"
    if not status.known:
        head += "; give --num_pairs if there shall be more shards"
    by_job = {job.job: job for job in status.jobs}
    work = [
        f"{w.job} works on shard {w.shard} for {span(w.seconds)}, "
        f"has written {by_job[w.job].written}"
        f"{f', {rate_text(rate)}' if (rate := by_job[w.job].pairs_per_second) else ''}"
        for w in status.in_work
    ]
    stale = [
        f"{w.job} is gone: shard {w.shard}, claimed {span(w.seconds)} ago, last renewed "
        f"{span(w.seconds_since_renewal)} ago; the next job takes it over"
        for w in status.stale
    ]
    ranges = [f"{a}" if a == b else f"{a}-{b}" for a, b in status.missing]
    rest = [f"missing: {', '.join(shorten(ranges))}"] if ranges else []
    return [head, *shorten(work), *shorten(stale), *rest]


def rate_text(rate: float) -> str:
    """Return a rate; slow teachers make less than a pair per second."""
    return f"{rate:,.0f} pairs/s" if rate >= 10 else f"{rate:.2g} pairs/s"


def shorten(texts: list[str]) -> list[str]:
    """Return the first ones, and the number of the others."""
    more = [f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return [*texts[:SHOWN], *more]


def span(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    return tqdm.format_interval(seconds)


if __name__ == "__main__":
    cli.end_with_code(lambda: main(cli.parse_flags(StatusConfig)))
