"""Which stores of boxes are kept, and for whom."""

from __future__ import annotations

from pathlib import Path

from nixops_operator.adapters.nix.boxes.folders import is_real
from nixops_operator.adapters.nix.boxes.stores import KeptStores


def store_at(root: Path, content: str) -> Path:
    (root / "nix/store").mkdir(parents=True)
    (root / "nix/store/file").write_text(content)
    return root


def contents(folder: Path) -> list[str]:
    return sorted(path.read_text() for path in folder.rglob("file"))


def test_a_store_comes_back_to_its_tenant_and_to_nobody_else(tmp_path: Path) -> None:
    stores, root = KeptStores(tmp_path / "pool"), tmp_path / "root"
    stores.keep("a", store_at(root, "of a"), frozenset({"known to a"}))
    assert not root.exists()
    assert stores.take("b", root) == frozenset()
    assert not root.exists()
    assert stores.take("a", root) == {"known to a"}
    assert contents(root) == ["of a"]


def test_one_that_is_out_is_not_given_twice(tmp_path: Path) -> None:
    stores = KeptStores(tmp_path / "pool")
    stores.keep("a", store_at(tmp_path / "root", "of a"), frozenset({"known"}))
    assert stores.take("a", tmp_path / "first") == {"known"}
    assert stores.take("a", tmp_path / "second") == frozenset()


def test_of_two_of_one_tenant_the_last_one_stays(tmp_path: Path) -> None:
    stores = KeptStores(tmp_path / "pool")
    for text in ("first", "second"):
        stores.keep("a", store_at(tmp_path / "root", text), frozenset({text}))
    assert contents(tmp_path) == ["second"]
    assert stores.take("a", tmp_path / "root") == {"second"}


def test_eight_tenants_have_one_and_the_longest_unused_goes(tmp_path: Path) -> None:
    stores = KeptStores(tmp_path / "pool")
    for number in range(8):
        stores.keep(str(number), store_at(tmp_path / "root", str(number)), frozenset())
    stores.take("0", tmp_path / "root")
    stores.keep("0", tmp_path / "root", frozenset())
    stores.keep("8", store_at(tmp_path / "root", "8"), frozenset())
    assert contents(tmp_path) == ["0", "2", "3", "4", "5", "6", "7", "8"]


def test_one_that_is_damaged_is_no_store(tmp_path: Path) -> None:
    stores = KeptStores(tmp_path / "pool")
    stores.keep("a", store_at(tmp_path / "root", "of a"), frozenset({"known"}))
    (tmp_path / "root").write_text("in the way")
    assert stores.take("a", tmp_path / "root") == frozenset()
    assert contents(tmp_path) == []


def test_none_is_left_when_all_are_cleared(tmp_path: Path) -> None:
    stores = KeptStores(tmp_path / "pool")
    stores.keep("a", store_at(tmp_path / "root", "of a"), frozenset({"known"}))
    stores.clear()
    assert contents(tmp_path) == []
    assert stores.take("a", tmp_path / "root") == frozenset()


def test_a_folder_behind_a_link_is_not_where_it_seems(tmp_path: Path) -> None:
    (tmp_path / "real/store").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    assert is_real(tmp_path / "real/store")
    assert not is_real(tmp_path / "link/store")
    assert not is_real(tmp_path / "nowhere")
