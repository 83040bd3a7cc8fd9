"""Values as text, compared with what Nix 2.8 printed."""

from __future__ import annotations

import pytest

from tests.eval.support import make_evaluator, shown
from tvix.eval.builtins.control import force_deep
from tvix.eval.errors import NixTypeError
from tvix.eval.printing import JsonPrinter, XmlPrinter, json_string, quote, show_float, show_name, to_nix


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.0, "1"), (0.1, "0.1"), (123456789.123, "1.23457e+08"), (1e6, "1e+06"), (1e5, "100000"), (1e-10, "1e-10")],
)
def test_floats_have_six_digits(value: float, text: str) -> None:
    assert show_float(value) == text


def test_strings_escape_what_would_end_or_interpolate_them() -> None:
    assert quote('a"\n\t\r\\$${x} $') == r'"a\"\n\t\r\\$\${x} $"'


def test_names_are_quoted_unless_identifiers() -> None:
    names = ["a", "a'", "a-b", "_x", "or", "if", "1x", "a b", "", "é"]
    assert [show_name(name) for name in names] == [
        "a", "a'", "a-b", "_x", "or", '"if"', '"1x"', '"a b"', '""', '"é"',
    ]  # fmt: skip


def test_what_is_not_computed_is_code() -> None:
    value = make_evaluator().evaluate_text(
        "{ a = 1 + 1; b = [ 1 ]; c = map; d = x: x; e = null; f = { }; g = /a; h = builtins.add 1; }"
    )
    assert to_nix(value) == (
        "{ a = <CODE>; b = <CODE>; c = <PRIMOP>; d = <LAMBDA>; e = null; f = <CODE>; g = /a; h = <CODE>; }"
    )


def test_what_was_shown_is_repeated() -> None:
    assert shown("let x = { a = 1; }; in [ x x (rec { y = [ 1 ]; w = { inherit y; }; }) [ ] [ ] ]") == (
        "[ { a = 1; } «repeated» { w = { y = [ 1 ]; }; y = «repeated»; } [ ] [ ] ]"
    )
    assert shown("let x = { a = x; }; in x") == "{ a = «repeated»; }"


def test_functions_say_what_they_are() -> None:
    assert shown("[ (x: x) ({ a }: a) map (builtins.add 1) (builtins.foldl' 1 2) ]") == (
        "[ <LAMBDA> <LAMBDA> <PRIMOP> <PRIMOP-APP> <PRIMOP-APP> ]"
    )


def json_of(text: str) -> str:
    evaluator = make_evaluator()
    return JsonPrinter(evaluator.strings, copy_paths=False).show(evaluator.evaluate_text(text))


def test_json_sorts_names_and_takes_out_paths() -> None:
    assert json_of('{ b = [ 1.0 null true /x ]; a = { outPath = "o"; z = 1; }; c = { __toString = s: "t"; }; }') == (
        '{"a":"o","b":[1,null,true,"/x"],"c":"t"}'
    )


def test_json_escapes_as_nix_does() -> None:
    assert json_string('é"\\\n\x08\x0c\x01\x7f/') == '"é\\"\\\\\\n\\u0008\\u000c\\u0001\x7f/"'


def test_json_cannot_say_functions() -> None:
    with pytest.raises(NixTypeError, match="cannot convert a function to JSON"):
        json_of("[ (x: x) ]")


XML = """<?xml version='1.0' encoding='utf-8'?>
<expr>
  <list>
    <function>
      <varpat name="x" />
    </function>
    <function>
      <attrspat ellipsis="1" name="z">
        <attr name="a" />
        <attr name="b" />
      </attrspat>
    </function>
    <unevaluated />
    <derivation drvPath="/d">
      <attr name="drvPath">
        <string value="/d" />
      </attr>
      <attr name="type">
        <string value="derivation" />
      </attr>
    </derivation>
    <derivation drvPath="/d">
      <repeated />
    </derivation>
    <string value="&lt;&amp;&quot;&gt;&#xA;" />
    <attrs>
    </attrs>
    <float value="1.5" />
    <null />
  </list>
</expr>
"""


def test_xml_is_that_of_nix() -> None:
    value = make_evaluator().evaluate_text(
        '[ (x: x) ({ b, a, ... }@z: a) map { type = "derivation"; drvPath = "/d"; } '
        '{ type = "derivation"; drvPath = "/d"; n = 1; } "<&\\">\\n" { } 1.5 null ]'
    )
    assert XmlPrinter(strict=True, location=False).show(force_deep(value)) == XML


def test_xml_says_where_attributes_and_functions_were_written() -> None:
    value = make_evaluator().evaluate_text("{\n  a = x: x; }")
    text = XmlPrinter(strict=True, location=True).show(value)
    assert '<attr column="3" line="2" name="a" path="«string»">' in text
    assert 'line="2" path="«string»">\n        <varpat name="x" />' in text
