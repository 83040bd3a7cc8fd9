"""Generated Nix programs: well-scoped, mostly well-typed, and small enough to read when they differ.

An expression is drawn for a kind of value (`int`, `bool`, `str`, `list` of integers, `set`), with the variables of
that kind in scope. Now and then another kind is drawn, so that errors are compared too.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st

KINDS = ("int", "bool", "str", "list", "set")
_NAMES = ("a", "b", "c", "x", "y", "f'")
_ATTRIBUTES = ("a", "b", "c", "d-e", '"q r"')
_WRONG_KIND = 25
"""One expression in so many has another kind than the one wanted."""

Scope = Mapping[str, str]
"""Variables and their kinds."""

_TEMPLATES: dict[str, tuple[str, ...]] = {
    "int": (
        "({int} + {int})",
        "({int} - {int})",
        "({int} * {small})",
        "({int} / {small})",
        "(- {int})",
        "(builtins.length {list})",
        "(builtins.elemAt {list} {small})",
        "(builtins.head ({list} ++ [ {int} ]))",
        "(builtins.foldl' (p: q: p - q) {int} {list})",
        "(builtins.stringLength {str})",
        "(builtins.bitXor {int} {int})",
        "(builtins.compareVersions {str} {str})",
        "(builtins.seq {bool} {int})",
        "({set}.a or {int})",
        "(builtins.ceil ({int} / 2.0))",
        "(({{ m, n ? {int} }}: m - n) {{ m = {int}; }})",
        "(builtins.fromJSON (builtins.toJSON {int}))",
    ),
    "bool": (
        "({int} == {int})",
        "({int} < {int})",
        "({str} <= {str})",
        "({bool} && {bool})",
        "({bool} || {bool})",
        "({bool} -> {bool})",
        "(! {bool})",
        "({set} ? {attribute})",
        "({set} == {set})",
        "({list} == {list})",
        "({list} < {list})",
        "(builtins.elem {int} {list})",
        "(builtins.all (p: p < {int}) {list})",
        "(builtins.any (p: p != {int}) {list})",
        "(builtins.isInt {set}.b or {bool})",
        "(builtins.hasAttr {str} {set})",
        "(builtins.tryEval (assert {bool}; {int})).success",
    ),
    "str": (
        "({str} + {str})",
        '"<${{{str}}}|${{toString {int}}}>"',
        "(toString {list})",
        "(builtins.substring {small} 3 {str})",
        "(builtins.toJSON {set})",
        "(builtins.toXML {set})",
        '(builtins.concatStringsSep "," (map toString {list}))',
        '(builtins.replaceStrings [ "a" "1" ] [ "<1>" "" ] {str})',
        '(builtins.hashString "md5" {str})',
        "(builtins.typeOf {set}.a or {list})",
        '(builtins.head (builtins.split "[0-9]+" {str}))',
        "''\n  {small}\n    ${{{str}}}\n ''",
        "({{ __toString = self: self.v; v = {str}; }} + {str})",
    ),
    "list": (
        "[ {int} {int} ]",
        "({list} ++ {list})",
        "(map (p: p + {int}) {list})",
        "(builtins.filter (p: p < {int}) {list})",
        "(builtins.sort (p: q: p < q) {list})",
        "(builtins.genList (p: p * {small}) 4)",
        "(builtins.concatMap (p: [ p {int} ]) {list})",
        "(builtins.tail ({list} ++ [ {int} ]))",
        "(builtins.attrValues (builtins.mapAttrs (p: q: {int}) {set}))",
        "(builtins.concatLists [ {list} {list} ])",
        "(builtins.partition (p: p > {int}) {list}).right",
        "(map (p: p.key) (builtins.genericClosure {{ startSet = [ {{ key = {small}; }} ]; "
        "operator = p: if p.key > 5 then [ ] else [ {{ key = p.key + 2; }} {{ key = p.key + 3; }} ]; }}))",
    ),
    "set": (
        "{{ a = {int}; b = {bool}; }}",
        "{{ c.a = {int}; c.b = {str}; {attribute} = {list}; }}",
        "rec {{ a = {int}; b = a; }}",
        "({set} // {set})",
        "(removeAttrs {set} [ {str} ])",
        "(builtins.intersectAttrs {set} {set})",
        "(builtins.listToAttrs [ {{ name = {str}; value = {int}; }} ])",
        "(builtins.mapAttrs (p: q: [ p q ]) {set})",
        "(builtins.groupBy (p: toString p) {list})",
        "{{ ${{{str}}} = {int}; }}",
        "(with {set}; {{ inherit ({set}) a; }})",
        "(builtins.tryEval {int})",
        "(builtins.parseDrvName {str})",
        "(builtins.functionArgs ({{ a, b ? {int}, ... }}: a))",
    ),
}
_ANY_KIND = (
    "(if {bool} then {same} else {same})",
    "(let {name} = {other}; in {body})",
    "(({name}: {body}) {other})",
    "(with {{ {name} = {other}; }}; {body})",
    "(({{ {name} ? {other}, ... }}: {body}) {{ }})",
    "(rec {{ {name} = {other}; r = {body}; }}).r",
    "(assert {bool}; {same})",
)
_LEAVES = {
    "bool": st.sampled_from(["true", "false"]),
    "str": st.sampled_from(['""', '"a"', '"1.2-x"', '"a1b22"', '"é"', '"$a\\n"', "''q''"]),
    "list": st.sampled_from(["[ ]", "[ 1 ]", "[ 3 1 2 ]", "[ (-1) 0 ]"]),
    "set": st.sampled_from(["{ }", "{ a = 1; }", "{ b = true; a = -2; }", '{ "q r" = [ ]; }']),
    "int": st.integers(min_value=-20, max_value=1000).map(lambda value: str(value) if value >= 0 else f"({value})"),
}


@st.composite
def _expression(draw: st.DrawFn, kind: str, scope: Scope, depth: int) -> str:
    if draw(st.integers(min_value=1, max_value=_WRONG_KIND)) == _WRONG_KIND:
        kind = draw(st.sampled_from(KINDS))
    variables = [name for name, of_kind in scope.items() if of_kind == kind]
    if depth <= 0:
        leaves = _LEAVES[kind]
        return draw(st.one_of(st.sampled_from(variables), leaves) if variables else leaves)
    template = draw(st.sampled_from(_ANY_KIND + _TEMPLATES[kind]))
    name, other = draw(st.sampled_from(_NAMES)), draw(st.sampled_from(KINDS))
    parts = {
        "name": name,
        "small": str(draw(st.integers(min_value=0, max_value=3))),
        "attribute": draw(st.sampled_from(_ATTRIBUTES)),
        "other": "",
        "body": "",
        "same": "",
    }
    outer = {**scope, name: other} if template.startswith("(rec") else scope
    if "{other}" in template:
        inner_scope = {key: of_kind for key, of_kind in outer.items() if key != name or not template.startswith("(rec")}
        parts["other"] = draw(_expression(other, inner_scope, depth - 1))
        parts["body"] = draw(_expression(kind, {**scope, name: other}, depth - 1))
    if "{same}" in template:
        parts["same"] = draw(_expression(kind, scope, depth - 1))
    for needed in KINDS:
        parts[needed] = draw(_expression(needed, scope, depth - 1)) if f"{{{needed}}}" in template else ""
    return template.format(**parts)


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Draw a closed expression."""
    kind = draw(st.sampled_from(KINDS))
    return draw(_expression(kind, {}, draw(st.integers(min_value=1, max_value=4))))
