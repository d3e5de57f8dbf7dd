"""Names of places that data sets are written to; store.py has those that are read from."""

from pathlib import Path

from data.bucket import Bucket
from data.site import LocalSite, Site
from data.store import is_address

Place = str | Path | Site
"""A local folder, or as text the address of an object store."""


def open_site(place: Place) -> Site:
    """Return the site that a path or address names; a site is returned as it is.

    Raises:
        InputError: If files there do not appear whole, or a package is missing.
    """
    if isinstance(place, Site):
        return place
    if isinstance(place, str) and (is_address(place) or place.startswith("pipe:")):
        return Bucket(place)
    return LocalSite(Path(place))
