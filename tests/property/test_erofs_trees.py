from __future__ import annotations

import struct

import pytest
from erofs_trees import Contents, differences
from hypothesis import given
from hypothesis import strategies as st
from tree_strategies import shuffled, trees

from layerstore.formats.erofs import ErofsError, emit, seal
from layerstore.formats.erofs_read import parse
from layerstore.formats.tree import Tree

_LIMITS = st.sampled_from([0, 64, 3072, 3073, 20000])


@given(drawn=trees(), inline_limit=_LIMITS)
def test_an_image_says_what_its_tree_says(drawn: tuple[Tree, Contents], inline_limit: int) -> None:
    tree, contents = drawn
    image = parse(emit(tree, inline=contents, inline_limit=inline_limit), where="test")
    assert list(differences(tree, image.tree)) == []
    used = {node.digest for _, node in tree.walk() if 0 < node.size <= inline_limit}
    assert image.inline == {digest: c for digest, c in contents.items() if digest in used}


@given(drawn=trees(), inline_limit=_LIMITS)
def test_the_image_does_not_depend_on_the_order_of_dictionaries(
    drawn: tuple[Tree, Contents], inline_limit: int
) -> None:
    tree, contents = drawn
    image = emit(tree, inline=contents, inline_limit=inline_limit)
    assert emit(shuffled(tree), inline=contents.get, inline_limit=inline_limit) == image


@given(
    drawn=trees(),
    changes=st.lists(st.tuples(st.integers(0), st.integers(0, 2**32 - 1)), min_size=1, max_size=6),
)
def test_a_forged_image_is_refused_or_read_but_never_a_crash(
    drawn: tuple[Tree, Contents], changes: list[tuple[int, int]]
) -> None:
    image = bytearray(emit(drawn[0], inline=drawn[1], inline_limit=3000))
    for place, word in changes:
        struct.pack_into("<I", image, 1024 + place * 4 % (len(image) - 1024), word)
    seal(image)
    try:
        found = parse(bytes(image), where="forged")
    except ErofsError as error:
        assert error.brief.startswith("the metadata image forged is damaged: ")
    else:
        dict(found.tree.walk())


@given(drawn=trees(), place=st.integers(0), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(drawn: tuple[Tree, Contents], place: int, bit: int) -> None:
    image = bytearray(emit(drawn[0], inline=drawn[1]))
    image[place % len(image)] ^= 1 << bit
    with pytest.raises(ErofsError, match="the metadata image test is damaged: "):
        parse(bytes(image), where="test")
