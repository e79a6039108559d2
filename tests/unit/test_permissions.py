"""The one table of roles is whole, and the page shows it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from engine import permissions
from engine.permissions import MEANINGS, ROLES, SCOPES, Permission, Role, Scope, may_hand_out, of_role, of_scopes

PAGE = Path(__file__).parents[2] / "docs" / "organizations.md"


def test_every_role_scope_and_permission_is_in_the_table() -> None:
    assert ROLES.keys() == set(Role)
    assert SCOPES.keys() == set(Scope)
    assert MEANINGS.keys() == set(Permission)


def test_each_role_may_all_that_those_below_may_and_more() -> None:
    for higher, lower in pairwise(Role):
        assert of_role(higher) > of_role(lower)
        assert may_hand_out(of_role(higher), lower)
        assert not may_hand_out(of_role(lower), higher)


def test_no_scope_of_a_key_may_more_than_an_admin() -> None:
    for scope in Scope:
        assert of_scopes([scope]) <= of_role(Role.ADMIN)


def test_an_unknown_scope_gives_nothing() -> None:
    assert of_scopes(["everything", "runs:read"]) == of_scopes(["runs:read"])


def test_the_page_shows_the_table() -> None:
    (shown,) = re.findall(r"<!-- roles -->\n(.*?)\n<!-- /roles -->", PAGE.read_text("utf-8"), re.DOTALL)
    assert shown == permissions.as_table()


def test_every_link_of_the_page_leads_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", PAGE.read_text("utf-8"))
    assert [link for link in links if "://" not in link and not (PAGE.parent / link).exists()] == []
