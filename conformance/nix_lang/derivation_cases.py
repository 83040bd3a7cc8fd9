"""Makes tests/eval/builtins/golden/derivations.json: what real Nix (2.8) makes of expressions with derivations.

    python -m conformance.nix_lang.derivation_cases

Each case is instantiated into an empty store, and what came of it is written down: printed paths, every .drv
file, the names of all other store paths; or the first line of the error. Cases of `EVALUATED` are evaluated and
their value written down as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[2] / "tests" / "eval" / "builtins" / "golden"
FILES = GOLDEN / "files"
FEATURES = "ca-derivations impure-derivations nix-command flakes"

BASE = 'name = "a"; system = "x"; builder = "b"; '
SRI = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
EMPTY = {
    "md5": "d41d8cd98f00b204e9800998ecf8427e",
    "sha1": "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "sha512": "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce"
    "47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
}
INPUT = 'i = derivation { name = "i"; system = "x"; builder = "b"; outputs = [ "out" "dev" ]; }; '


def plain(attributes: str) -> str:
    """Return an expression for a derivation with more attributes."""
    return f"derivation {{ {BASE}{attributes} }}"


def with_input(attributes: str) -> str:
    """Return an expression for a derivation that may use another, `i`, with outputs `out` and `dev`."""
    return f"let {INPUT}in {plain(attributes)}"


FIXED = plain(f'outputHash = "{SRI}";')
FIXED_ON_I = f'inherit i; outputHash = "{SRI}";'

INSTANTIATED = {
    "minimal": plain(""),
    "no_coercion_needed": plain('s = "text";'),
    "true": plain("v = true;"),
    "false": plain("v = false;"),
    "null": plain("v = null;"),
    "integer": plain("v = 42;"),
    "negative_integer": plain("v = -42;"),
    "float": plain("v = 1.0;"),
    "small_float": plain("v = 0.0000001;"),
    "large_float": plain("v = 1.5e300;"),
    "list": plain('v = [ 1 "two" [ 3 [ ] ] null true false ];'),
    "empty_list": plain("v = [ ];"),
    "list_of_empty_lists": plain('v = [ [ ] [ ] "x" [ ] ];'),
    "list_with_trailing_empty": plain('v = [ "x" [ ] ];'),
    "list_with_null_last": plain('v = [ "x" null ];'),
    "set_with_outPath": plain('v = { outPath = "/x"; };'),
    "set_with_toString": plain('v = { __toString = self: "str-${self.x}"; x = "y"; outPath = "/no"; };'),
    "nested_outPath": plain('v = { outPath = { outPath = "deep"; }; };'),
    "escapes": plain(r'v = "a\"b\\c\nd\re\tf\${g}"; w = "$${x}";'),
    "unicode": plain('v = "grüße → 🌍"; "ключ" = "значение"; "z\u00e4" = 1; "€" = 2; "~" = 3;'),
    "odd_names": plain('"a b" = 1; "A" = 2; "_" = 3; "a\\"q" = 4; "-" = 5; "1" = 6; "aa" = 7; "a.b" = 8;'),
    "arguments": plain('args = [ "-c" "echo $out" 1 true null ./tree/a.txt ];'),
    "empty_arguments": plain("args = [ ];"),
    "argument_that_is_a_list": plain('args = [ [ "a" "b" ] ];'),
    "outputs": plain('outputs = [ "out" "dev" "lib" ];'),
    "outputs_without_out": plain('outputs = [ "bin" "dev" ];'),
    "outputs_first_is_not_out": plain('outputs = [ "dev" "out" ];'),
    "output_names_as_attributes": plain('outputs = [ "out" "dev" ]; dev = "mine"; out = 1;'),
    "attribute_out": plain('out = "mine";'),
    "second_output": "(" + plain('outputs = [ "out" "dev" ];') + ").dev",
    "derivation_name_with_all_characters": 'derivation { name = "aZ0+-._?="; system = "x"; builder = "b"; }',
    "builder_path": 'derivation { name = "a"; system = "x"; builder = ./tree/run.sh; }',
    "builder_with_context": with_input('x = 1; args = [ "${i.dev}/bin" ];'),
    "builder_is_input": f'let {INPUT}in derivation {{ name = "a"; system = "x"; builder = "${{i}}/bin/sh"; }}',
    "system_with_context": f'let {INPUT}in derivation {{ name = "a"; system = "${{i}}"; builder = "b"; }}',
    "current_folder_file": plain("src = ./tree/a.txt;"),
    "tree": plain("src = ./tree;"),
    "tree_in_string": plain('src = "${./tree}/sub";'),
    "same_source_twice": plain('a = ./tree; b = "${./tree}"; c = [ ./tree ./tree/run.sh ];'),
    "path_plus_string": plain('src = ./tree + "/sub";'),
    "to_string_of_path_does_not_copy": plain("n = builtins.stringLength (toString ./tree) > 3;"),
    "input": with_input("inherit i;"),
    "input_dev": with_input("d = i.dev;"),
    "input_both": with_input("d = i.dev; o = i.out; a = i.all;"),
    "input_in_string": with_input('x = "-I${i.dev}/include -L${i}/lib";'),
    "input_in_list": with_input("x = [ i i.dev i ];"),
    "input_through_set": with_input("x = { outPath = i; };"),
    "two_inputs_equal_modulo": (
        f'let f = n: derivation {{ name = "f"; system = "x"; builder = n; outputHash = "{SRI}"; }}; '
        f"in " + plain('x = f "1"; y = f "2";')
    ),
    "chain": (
        'let f = n: derivation { name = "c${toString n}"; system = "x"; builder = "b"; '
        "p = if n == 0 then [ ] else [ (f (n - 1)) ]; q = if n < 2 then null else f (n - 2); }; in f 12"
    ),
    "diamond_over_fixed": (
        f'let s = derivation {{ name = "s.tar"; system = "x"; builder = "fetch"; outputHash = "{EMPTY["sha256"]}"; '
        'outputHashAlgo = "sha256"; }; f = n: derivation { name = n; system = "x"; builder = "b"; src = s; }; '
        f"in " + plain('x = [ (f "l") (f "r") ];')
    ),
    "discarded_context": with_input("x = builtins.unsafeDiscardStringContext i.outPath;"),
    "drv_path": with_input("x = i.drvPath;"),
    "drv_path_of_chain": (
        'let i = derivation { name = "i"; system = "x"; builder = "b"; src = ./tree; }; '
        'j = derivation { name = "j"; system = "x"; builder = "b"; inherit i; }; '
        "in " + plain('x = j.drvPath; t = builtins.toFile "t" "text ${./tree}";')
    ),
    "drv_path_through_text_file": (
        f'let {INPUT}j = derivation {{ name = "j"; system = "x"; builder = "b"; '
        'f = builtins.toFile "t" "text ${./tree} ${builtins.toFile "u" "v"}"; }; '
        f"in " + plain("x = j.drvPath;")
    ),
    "drv_path_without_outputs": with_input("x = builtins.unsafeDiscardOutputDependency i.drvPath;"),
    "export_references_graph": with_input('exportReferencesGraph = [ "graph" i "other" i.drvPath ];'),
    "export_references_graph_of_output": with_input('exportReferencesGraph = [ "graph" i.dev ];'),
    "pass_as_file": plain('passAsFile = [ "big" ]; big = "contents";'),
    "required_system_features": plain('requiredSystemFeatures = [ "kvm" "big-parallel" ];'),
    "ignore_nulls": plain("__ignoreNulls = true; n = null; m = 1;"),
    "ignore_nulls_false": plain("__ignoreNulls = false; n = null;"),
    "ignore_nulls_in_list": plain("__ignoreNulls = true; n = [ null ];"),
    "structured": plain("__structuredAttrs = true; l = [ 1 true null { } ]; z = { b = 1; a = { }; }; e = [ ];"),
    "structured_false": plain("__structuredAttrs = false;"),
    "structured_strings": plain(r'__structuredAttrs = true; s = "q\"\\\n\r\tä/"; n = -5; t = "</script>";'),
    "structured_floats": plain("__structuredAttrs = true; f = 1.0; g = 1.5e300; h = 0.1; i = 123456789.123;"),
    "structured_outputs": plain('__structuredAttrs = true; outputs = [ "out" "dev" ];'),
    "structured_arguments": plain('__structuredAttrs = true; args = [ "a" 1 true ];'),
    "structured_path": plain("__structuredAttrs = true; src = ./tree; s = [ ./tree/a.txt ];"),
    "structured_input": with_input("__structuredAttrs = true; inherit i; d = { x = [ i.dev ]; };"),
    "structured_to_string": plain('__structuredAttrs = true; v = { __toString = self: "s"; };'),
    "structured_builder_is_input": (
        f'let {INPUT}in derivation {{ name = "a"; system = "x"; builder = "${{i}}/sh"; __structuredAttrs = true; }}'
    ),
    "structured_nulls": plain("__structuredAttrs = true; n = null;"),
    "structured_ignored_nulls": plain("__structuredAttrs = true; __ignoreNulls = true; n = null; l = [ null ];"),
    "structured_fixed": plain(
        f'__structuredAttrs = true; outputHash = "{SRI}"; outputHashMode = "recursive"; outputHashAlgo = "sha256";'
    ),
    "structured_json_attribute": plain("__structuredAttrs = true; __json = 1;"),
    "structured_export_references_graph": with_input(
        "__structuredAttrs = true; exportReferencesGraph = { g = [ i ]; h = i.drvPath; };"
    ),
    "structured_output_checks": plain('__structuredAttrs = true; outputChecks.out.disallowedReferences = [ "dev" ];'),
    "json_attribute": plain('__json = "{}";'),
    "content_addressed": plain("__contentAddressed = true;"),
    "content_addressed_false": plain("__contentAddressed = false;"),
    "content_addressed_outputs": plain('__contentAddressed = true; outputs = [ "out" "dev" ];'),
    "content_addressed_modes": plain('__contentAddressed = true; outputHashMode = "flat"; outputHashAlgo = "sha1";'),
    "content_addressed_recursive": plain('__contentAddressed = true; outputHashMode = "recursive";'),
    "content_addressed_structured": plain("__contentAddressed = true; __structuredAttrs = true; x = [ 1 ];"),
    "content_addressed_with_hash": plain(f'__contentAddressed = true; outputHash = "{SRI}";'),
    "impure": plain("__impure = true;"),
    "impure_false": plain("__impure = false;"),
    "impure_outputs": plain('__impure = true; outputs = [ "out" "dev" ];'),
    "impure_modes": plain('__impure = true; outputHashMode = "flat"; outputHashAlgo = "sha512";'),
    "on_content_addressed": (
        "let i = " + plain('__contentAddressed = true; outputs = [ "out" "lib" ];') + "; "
        "in " + plain('inherit i; j = i.lib; outputs = [ "out" "dev" ];')
    ),
    "on_deferred": (
        "let i = "
        + plain("__contentAddressed = true;")
        + "; j = "
        + plain("inherit i;")
        + "; in "
        + plain("k = 1; inherit j;")
    ),
    "content_addressed_on_deferred": (
        "let i = " + plain("__contentAddressed = true;") + "; j = " + plain("inherit i;") + "; "
        "in " + plain("__contentAddressed = true; inherit j i;")
    ),
    "on_impure": "let i = " + plain("__impure = true;") + "; in " + plain("__contentAddressed = true; inherit i;"),
    "input_addressed_on_impure": "let i = " + plain("__impure = true;") + "; in " + plain("inherit i;"),
    "fixed_on_content_addressed": ("let i = " + plain("__contentAddressed = true;") + "; in " + plain(FIXED_ON_I)),
    "on_fixed_on_content_addressed": (
        "let i = " + plain("__contentAddressed = true;") + "; f = " + plain(FIXED_ON_I) + "; in " + plain("inherit f;")
    ),
    "placeholder": plain('x = builtins.placeholder "out"; y = placeholder "dev";'),
    "to_file": plain('x = builtins.toFile "x.txt" "contents";'),
    "to_file_with_reference": plain('x = builtins.toFile "x" "see ${builtins.toFile "y" "z"} and ${./tree}";'),
    "path_filtered": plain(
        'src = builtins.path { path = ./tree; name = "t"; filter = p: t: t != "directory" && baseNameOf p != "link"; };'
    ),
    "path_flat": plain("src = builtins.path { path = ./tree/a.txt; recursive = false; };"),
    "path_with_hash": plain(
        'src = builtins.path { path = ./tree/sub/empty; recursive = false; name = "e"; '
        f'sha256 = "{EMPTY["sha256"]}"; }};'
    ),
    "path_of_string": plain('src = builtins.path { path = toString ./tree; name = "from-string"; };'),
    "path_default_name": plain("src = builtins.path { path = ./tree/sub; };"),
    "filter_source": plain('src = builtins.filterSource (p: t: t == "regular") ./tree;'),
    "filter_source_all": plain("src = builtins.filterSource (p: t: true) ./tree;"),
    "filter_source_of_file": plain("src = builtins.filterSource (p: t: false) ./tree/a.txt;"),
    "several_at_once": '[ (derivation { name = "1"; system = "x"; builder = "b"; }) '
    '{ q = derivation { name = "2"; system = "x"; builder = "b"; }; recurseForDerivations = true; } ]',
    "derivation_strict_outputs_as_string": (
        f'{{ type = "derivation"; name = "n"; outputName = "out"; '
        f'inherit (derivationStrict {{ {BASE}outputs = "out dev"; }}) drvPath; '
        'outPath = "x"; }'
    ),
    "nul_free_large": plain('v = builtins.concatStringsSep "" (builtins.genList (n: "line ${toString n}\n") 2000);'),
    "name_of_drv_output_checked": plain('outputs = [ "out" "dev-1_2.3" ];'),
    **{
        f"fixed_{algorithm}_{mode}": plain(
            f'outputHash = "{digest}"; outputHashAlgo = "{algorithm}"; outputHashMode = "{mode}";'
        )
        for algorithm, digest in EMPTY.items()
        for mode in ("flat", "recursive")
    },
    "fixed_sri": FIXED,
    "fixed_sri_and_algorithm": plain(f'outputHash = "{SRI}"; outputHashAlgo = "sha256"; outputHashMode = "recursive";'),
    "fixed_sri_null_algorithm": plain(f'outputHash = "{SRI}"; outputHashAlgo = null;'),
    "fixed_sri_unknown_algorithm": plain(f'outputHash = "{SRI}"; outputHashAlgo = "foo";'),
    "fixed_sri_without_padding": plain(f'outputHash = "{SRI[:-1]}";'),
    "fixed_sri_with_more_after": plain(f'outputHash = "{SRI}more";'),
    "fixed_prefixed": plain(f'outputHash = "sha256:{EMPTY["sha256"]}";'),
    "fixed_base32": plain(
        'outputHash = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"; outputHashAlgo = "sha256";'
    ),
    "fixed_prefixed_base32": plain('outputHash = "sha256:0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";'),
    "fixed_base64": plain(f'outputHash = "{SRI[7:]}"; outputHashAlgo = "sha256";'),
    "fixed_sha1_base32": plain('outputHash = "143xibwh31h9bvxzalr0sjvbbvpa6ffs"; outputHashAlgo = "sha1";'),
    "fixed_empty": plain('outputHash = ""; outputHashAlgo = "sha256";'),
    "fixed_empty_sha512": plain('outputHash = ""; outputHashAlgo = "sha512"; outputHashMode = "recursive";'),
    "fixed_outputs_out": plain(f'outputHash = "{SRI}"; outputs = [ "out" ];'),
    "fixed_multiple_uses": (
        "let f = " + FIXED + '; in derivation { name = "u"; system = "x"; builder = f; args = [ f ]; f = [ f f.out ]; }'
    ),
    # Errors.
    "error_no_name": 'derivation { system = "x"; builder = "b"; }',
    "error_no_system": 'derivation { name = "x"; builder = "b"; }',
    "error_no_builder": 'derivation { name = "x"; system = "b"; }',
    "error_empty_builder": 'derivation { name = "x"; system = "b"; builder = ""; }',
    "error_name_ends_in_drv": 'derivation { name = "a.drv"; system = "x"; builder = "b"; }',
    "error_name_with_space": 'derivation { name = "a b"; system = "x"; builder = "b"; }',
    "error_name_with_slash": 'derivation { name = "a/b"; system = "x"; builder = "b"; }',
    "error_empty_name": 'derivation { name = ""; system = "x"; builder = "b"; }',
    "error_long_name": 'derivation { name = builtins.concatStringsSep "" (builtins.genList (x: "x") 212); '
    'system = "x"; builder = "b"; }',
    "error_name_with_context": f'let {INPUT}in derivation {{ name = "${{i}}"; system = "x"; builder = "b"; }}',
    "error_name_is_integer": 'derivation { name = 1; system = "x"; builder = "b"; }',
    "error_function_attribute": plain("v = x: x;"),
    "error_set_attribute": plain("v = { };"),
    "error_arguments_no_list": plain('args = "a";'),
    "error_outputs_empty": plain("outputs = [ ];"),
    "error_outputs_drv": plain('outputs = [ "drv" ];'),
    "error_outputs_duplicate": plain('outputs = [ "out" "out" ];'),
    "error_outputs_string": plain('outputs = "out";'),
    "error_fixed_outputs": plain(f'outputHash = "{SRI}"; outputs = [ "out" "dev" ];'),
    "error_fixed_not_out": plain(f'outputHash = "{SRI}"; outputs = [ "dev" ];'),
    "error_fixed_mode": plain(f'outputHash = "{SRI}"; outputHashMode = "other";'),
    "error_fixed_algorithm_conflict": plain(f'outputHash = "{SRI}"; outputHashAlgo = "sha1";'),
    "error_fixed_empty_no_algorithm": plain('outputHash = "";'),
    "error_fixed_no_algorithm": plain(f'outputHash = "{EMPTY["sha256"]}";'),
    "error_fixed_wrong_length": plain('outputHash = "abc"; outputHashAlgo = "sha256";'),
    "error_fixed_wrong_digits": plain(f'outputHash = "{"z" * 64}"; outputHashAlgo = "sha256";'),
    "error_fixed_sri_too_short": plain(f'outputHash = "{SRI[:-2]}";'),
    "error_fixed_sri_wrong_digit": plain(f'outputHash = "{SRI[:-3]}*=";'),
    "error_impure_and_content_addressed": plain("__impure = true; __contentAddressed = true;"),
    "error_ignore_nulls_no_boolean": plain("__ignoreNulls = 1;"),
    "error_structured_no_boolean": plain('__structuredAttrs = "1";'),
    "error_structured_function": plain("__structuredAttrs = true; f = x: x;"),
    "error_structured_outputs_string": plain('__structuredAttrs = true; outputs = "out";'),
    "error_missing_path": plain("src = ./tree/nothing;"),
    "error_not_a_derivation": "{ }.x or 5",
    "error_to_file_of_derivation": with_input('x = builtins.toFile "x" "${i}";'),
    "error_path_wrong_hash": plain(f'src = builtins.path {{ path = ./tree; sha256 = "{EMPTY["sha256"]}"; }};'),
    "error_path_unknown_argument": plain("src = builtins.path { path = ./tree; nam = 1; };"),
    "error_store_path_outside": plain('x = builtins.storePath "/etc";'),
    "error_path_argument_missing": plain('src = builtins.path { name = "x"; };'),
    "error_drv_suffix_of_source": plain("src = ./tree/x.drv;"),
}

EVALUATED = {
    "attribute_names": "builtins.attrNames (" + plain('outputs = [ "out" "dev" ]; extra = 1;') + ")",
    "attribute_names_of_output": "builtins.attrNames (" + plain('outputs = [ "out" "dev" ];') + ").dev",
    "output_names": "let d = " + plain('outputs = [ "dev" "out" ];') + "; "
    "in [ d.outputName d.out.outputName d.dev.dev.out.outputName (map (o: o.outputName) d.all) d.type ]",
    "paths": "let d = "
    + plain('outputs = [ "dev" "out" ];')
    + "; in [ d.outPath d.out.outPath d.dev.outPath d.drvPath ]",
    "drv_attrs": "let d = " + plain('x = 1; outputs = [ "dev" "out" ];') + "; in d.drvAttrs",
    "strict": f'derivationStrict {{ {BASE}outputs = [ "out" "dev" ]; }}',
    "strict_content_addressed": f'derivationStrict {{ {BASE}__contentAddressed = true; outputs = [ "out" "dev" ]; }}',
    "contexts": "let d = " + plain('outputs = [ "dev" "out" ];') + "; in map builtins.getContext "
    '[ d.drvPath d.outPath "${d.out}" "${d}${d.out}" (builtins.toFile "x" "y") "${./tree}" ]',
    "lazy": "(" + plain('v = throw "never";') + ").name",
    "lazy_outputs": "builtins.length (" + plain('v = throw "never"; outputs = [ "out" "b" ];') + ").all",
    "function_arguments": "builtins.functionArgs derivation",
    "type_of": "builtins.typeOf derivation",
    "equality_by_path": "(" + plain("") + ") == (" + plain("") + ") // { more = 1; }",
    "inequality_by_path": "(" + plain("") + ") == (" + plain("x = 1;") + ")",
    "caught_throw": "builtins.tryEval (" + plain('v = throw "x";') + ").drvPath",
    "placeholders": 'map builtins.placeholder [ "out" "dev" "" "a b" ]',
    "store_dir": "builtins.storeDir",
    "to_file": '[ (builtins.toFile "x" "y") (builtins.toFile "x" "") ]',
    "read_to_file": 'builtins.readFile (builtins.toFile "x" "text")',
    "import_to_file": 'import (builtins.toFile "x.nix" "{ a = 1 + 1; }")',
    "import_copied_tree": 'import "${./tree}"',
    "import_copied_file": '[ (import "${./tree}/default.nix") (import (./tree + "/default.nix")) ]',
    "read_dir_of_copy": 'builtins.readDir "${./tree}"',
    "read_filtered_copy": 'builtins.readDir (builtins.filterSource (p: t: t == "regular") ./tree)',
    "path_exists_in_copy": "map builtins.pathExists "
    '[ "${./tree}/a.txt" "${./tree}/b" "${./tree}/sub/b.nix" "${./tree}" ]',
    "read_link_in_copy": 'builtins.readFile "${./tree}/link"',
    "store_path": '[ (builtins.storePath (builtins.toFile "x" "y")) '
    '(builtins.getContext (builtins.storePath (builtins.toFile "x" "y"))) ]',
    "hash_file_in_copy": 'builtins.hashFile "sha256" "${./tree}/a.txt"',
    "filter_calls": 'builtins.path { path = ./tree; name = "t"; '
    'filter = p: t: if t == "unknown" then throw p else t != "symlink"; }',
    "path_is_string_with_context": 'let p = builtins.path { path = ./tree; name = "t"; }; '
    "in [ (builtins.typeOf p) (builtins.getContext p) ]",
    "content_address_placeholder": "(" + plain("__contentAddressed = true;") + ").outPath",
    "to_json_of_derivation": "builtins.toJSON (" + plain("") + ")",
    "to_json_of_path": "builtins.getContext (builtins.toJSON { a = ./tree; })",
    "concatenated_copy": 'builtins.stringLength "${./tree}"',
    "base_name_of_copy": 'builtins.substring 32 100 (baseNameOf "${./tree/a.txt}")',
    "position_survives": '(builtins.unsafeGetAttrPos "name" (' + plain("") + ")).column",
}


def main() -> None:
    """Write the file."""
    cases: dict[str, Any] = {"instantiated": {}, "evaluated": {}}
    for name, expression in INSTANTIATED.items():
        cases["instantiated"][name] = {"expression": expression, **_instantiate(expression)}
    for name, expression in EVALUATED.items():
        cases["evaluated"][name] = {"expression": expression, **_evaluate(expression)}
    text = json.dumps(cases, indent=1, ensure_ascii=False, sort_keys=True)
    (GOLDEN / "derivations.json").write_text(text + "\n")


def _run(folder: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nix-instantiate", "--store", folder, "--option", "experimental-features", FEATURES, *arguments],
        cwd=FILES,
        env={**os.environ, "NIX_PATH": "", "NIX_REMOTE": "", "HOME": folder},
        capture_output=True,
        text=True,
        check=False,
    )


def _error(stderr: str) -> dict[str, Any]:
    text = re.sub(r"\x1b\[[0-9;]*m", "", stderr)
    match = re.search(r"^error: (.*)", text, re.MULTILINE)
    assert match is not None, stderr
    return {"error": match[1].replace(str(FILES), "")}


def _instantiate(expression: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = _run(folder, "-E", expression)
        if result.returncode:
            return _error(result.stderr)
        store = Path(folder) / "nix/store"
        derivations = {f"/nix/store/{file.name}": file.read_text() for file in sorted(store.glob("*.drv"))}
        others = [f"/nix/store/{entry.name}" for entry in sorted(store.iterdir()) if not entry.name.endswith(".drv")]
        return {
            "printed": result.stdout.split(),
            "derivations": derivations,
            "others": [path for path in others if path != "/nix/store/.links"],
        }


def _evaluate(expression: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        result = _run(folder, "--eval", "--strict", "--json", "--read-write-mode", "-E", expression)
        return _error(result.stderr) if result.returncode else {"value": json.loads(result.stdout)}


if __name__ == "__main__":
    main()
