"""Members of a system group: some are in it, some are not, and whoever else is in it stays.

Salt's own state says that changes could not be applied without saying which, and predicts success for
users that there are not.
"""

import grp
import pwd
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Salt's loader fills these in.
    __opts__: dict[str, Any] = {}
    __salt__: dict[str, Any] = {}


def members_of(group: str) -> set[str] | None:
    """Returns the members of a group, those by their primary group too; None if there is no such group."""
    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return None
    return {*entry.gr_mem, *(user.pw_name for user in pwd.getpwall() if user.pw_gid == entry.gr_gid)}


def is_user(name: str) -> bool:
    """Says whether there is a user of that name, also in a directory such as LDAP."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def plan(present: set[str], users: Iterable[str], absent: Iterable[str]) -> dict[str, list[str]]:
    """Returns who is to be added and who is to be removed, sorted.

    Args:
        present: the members now.
        users: who shall be one.
        absent: who shall be none.

    Raises:
        ValueError: somebody shall be both.
    """
    if both := sorted(set(users) & set(absent)):
        raise ValueError(f"{', '.join(both)} shall be a member and shall not")
    changes = {"added": sorted(set(users) - present), "removed": sorted(set(absent) & present)}
    return {what: names for what, names in changes.items() if names}


def present(name: str, users: list[str] | None = None, absent: list[str] | None = None) -> dict[str, Any]:
    """Makes sure that users are members of a group and others are not.

    Args:
        name: the group; it is never made here.
        users: who shall be a member.
        absent: who shall not be one. Everybody else stays what they are.

    Returns:
        A state result; nothing is changed when a user or the group does not exist.
    """
    ret: dict[str, Any] = {"name": name, "result": True, "changes": {}, "comment": ""}
    members = members_of(name)
    try:
        changes = plan(members or set(), users or [], absent or [])
    except ValueError as error:
        return ret | {"result": False, "comment": f"Nothing was changed: {error}."}
    if members is not None and not changes:
        return ret | {"comment": f"The group {name} has these members."}
    missing = [user for user in changes.get("added", []) if not is_user(user)]
    if __opts__["test"]:
        later = [f"the group {name}"] if members is None else []
        later += [f"the user {user}" for user in missing]
        comment = f"Would be changed once there is {', '.join(later)}." if later else f"Would change the group {name}."
        return ret | {"result": None if changes else True, "changes": changes, "comment": comment}
    if members is None:
        return ret | {"result": False, "comment": f"There is no group {name}; libvirt's package makes its own."}
    if missing:
        return ret | {"result": False, "comment": f"Nothing was changed: there is no user {', '.join(missing)}."}
    for what, function in (("added", "group.adduser"), ("removed", "group.deluser")):
        for user in changes.get(what, []):
            if not __salt__[function](name, user):
                comment = f"{user} could not be {what}; {function} says no more, see the minion's log."
                return ret | {"result": False, "comment": comment}
            ret["changes"].setdefault(what, []).append(user)
    return ret | {"comment": "Members notice it when they log in next."}
