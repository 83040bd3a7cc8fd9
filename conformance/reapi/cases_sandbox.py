"""Cases on what an action sees and leaves: its environment, and (k) outputs of every shape."""

from __future__ import annotations

from conformance.reapi.cases import case
from conformance.reapi.cases_execution import refusal
from conformance.reapi.client import (
    EMPTY,
    Endpoint,
    check,
    digest_of,
    directory_of,
    fresh,
    key,
    shell,
    status_name,
)
from conformance.results import Failed
from remote_apis import remote_execution_pb2 as re_pb2

TREE_ONLY = re_pb2.Command.TREE_ONLY
DIRECTORY_ONLY = re_pb2.Command.DIRECTORY_ONLY
BOTH = re_pb2.Command.TREE_AND_DIRECTORY


def _text(server: Endpoint, script: str, root: re_pb2.Directory | None = None, **fields: object) -> str:
    """Run a shell script and return what it printed."""
    done = server.run("/bin/sh", "-c", script, root=root, **fields)
    return server.stdout(done.result).decode()


@case("s.inputs", "input files, executables, directories and symlinks are there as described", "execution")
def inputs(server: Endpoint) -> None:
    tool = server.put(b"#!/bin/sh\necho ran " + fresh() + b"\n")
    child = server.put(directory_of({"deep": server.put(b"depth\n")}).SerializeToString())
    root = directory_of(
        {"plain": server.put(b"plain\n"), "tool": tool, "nothing": EMPTY},
        {"child": child, "void": EMPTY},
        {"link": "child/deep", "dangling": "no/where"},
        executable=["tool"],
    )
    script = (
        "cat plain child/deep link; ./tool | cut -c1-3; test -x plain && echo executable; readlink dangling; "
        "test -d void && ls -A void | wc -l; wc -c < nothing"
    )
    said = _text(server, script, root).split()
    check(said == ["plain", "depth", "depth", "ran", "no/where", "0", "0"], f"the action saw {said}")


@case("s.environment", "the environment is the command's, and nothing of the server's", "execution")
def environment(server: Endpoint) -> None:
    said = _text(server, "env", env={"ZED": "last", "A": "x=y z", "HOME": "/nowhere"})
    variables = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    check(variables.get("A") == "x=y z" and variables.get("ZED") == "last", f"environment {variables}")
    check(variables.get("HOME") == "/nowhere", "HOME is not the command's")
    strange = set(variables) - {"A", "ZED", "HOME", "PATH", "PWD", "SHLVL", "_", "OLDPWD", "TMPDIR"}
    check(not strange, f"variables that nobody asked for: {sorted(strange)}")


@case("s.path-lookup", "arguments[0]: a bare name is looked up in PATH, also when no PATH is given", "execution")
def path_lookup(server: Endpoint) -> None:
    done = server.run("sh", "-c", "echo found")
    check(server.stdout(done.result) == b"found\n", "stdout differs")


@case(
    "s.working-directory",
    "the command runs in working_directory; arguments[0] and outputs are relative to it",
    "execution",
)
def working_directory(server: Endpoint) -> None:
    inner = server.put(
        directory_of({"tool": server.put(b"#!/bin/sh\npwd\necho hi > out\n")}, executable=["tool"]).SerializeToString()
    )
    middle = server.put(directory_of(directories={"inner": inner}).SerializeToString())
    root = directory_of(directories={"middle": middle})
    done = server.run("./tool", root=root, working_directory="middle/inner", output_paths=["out"])
    check(server.stdout(done.result).decode().strip().endswith("middle/inner"), "pwd differs")
    check([output.path for output in done.result.output_files] == ["out"], "the output is not relative to it")


@case("s.no-working-directory", "a working_directory that is not in the input tree is refused", "execution")
def no_working_directory(server: Endpoint) -> None:
    for path in ("absent", "/absolute", "../outside"):
        code = refusal(server, server.put_action(shell("true", working_directory=path)))
        check(code in (3, 9), f"{path!r}: {status_name(code)}")


@case("s.devices", "/dev/null, zero, urandom, fd, stdin; /proc; a writable /tmp of its own", "execution")
def devices(server: Endpoint) -> None:
    script = (
        "set -e; echo x > /dev/null; head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; "
        "echo in | cat /dev/stdin; echo fd | cat /dev/fd/0; test -r /proc/self/status; "
        "test ! -e /tmp/conformance-mark; touch /tmp/conformance-mark; stat -c %a /tmp"
    )
    for _ in range(2):
        said = _text(server, script).split()
        check(said[:4] == ["4", "4", "in", "fd"], f"said {said}")


@case("s.isolation", "an action sees no process but its own, and does not reach the network by default", "execution")
def isolation(server: Endpoint) -> None:
    said = _text(
        server, "ls /proc | grep -c '^[0-9]'; ls /sys/class/net 2>/dev/null; cut -d: -f1 /proc/net/dev | tail -n +3"
    )
    count, *interfaces = said.split()
    check(int(count) <= 8, f"{count} processes to be seen")
    others = set(interfaces) - {"lo"}
    check(not {name for name in others if name.startswith(("eth", "en", "wl"))}, f"network interfaces {sorted(others)}")


@case("s.no-traces", "an action that changes its inputs changes nobody else's; background processes die", "execution")
def no_traces(server: Endpoint) -> None:
    data = b"original\n" + fresh()
    root = directory_of(
        {"f": server.put(data)}, {"d": server.put(directory_of({"g": server.put(data)}).SerializeToString())}
    )
    script = (
        "chmod u+w f d/g 2>/dev/null; (echo changed > f) 2>/dev/null; rm -f d/g; echo new > d/h; "
        "(sleep 300 &) ; echo done"
    )
    _text(server, script, root)
    said = _text(server, "cat f d/g; ls d", root)
    check(said == (data + data).decode() + "g\n", f"the next action saw {said!r}")
    check(server.read_blob(digest_of(data)) == data, "the blob changed in the store")


@case("s.inputs-writable", "an action may write beside its inputs, replace and delete them", "execution")
def inputs_writable(server: Endpoint) -> None:
    inner = server.put(directory_of({"g": server.put(fresh())}).SerializeToString())
    root = directory_of({"f": server.put(fresh())}, {"d": inner})
    script = "set -e; echo new > d/new; mv d/g d/moved; rm f; mkdir f; echo x > f/x; ln -s new d/l; ls -R d f"
    done = server.run("/bin/sh", "-c", script, root=root, output_paths=["d", "f"])
    check({output.path for output in done.result.output_directories} == {"d", "f"}, "outputs differ")


@case(
    "k.discovery", "output_paths: files, directories and symlinks are told apart; absent ones are left out", "execution"
)
def discovery(server: Endpoint) -> None:
    script = (
        "echo f > file; chmod +x file; mkdir -p dir/sub; echo g > dir/sub/g; "
        "ln -s file to-file; ln -s no dangling; ln -s dir to-dir"
    )
    paths = ["absent", "dangling", "dir", "file", "to-dir", "to-file"]
    result = server.run("/bin/sh", "-c", script, output_paths=paths).result
    check(
        [(output.path, output.is_executable) for output in result.output_files] == [("file", True)],
        f"files {result.output_files}",
    )
    check([output.path for output in result.output_directories] == ["dir"], "directories differ")
    links = {link.path: link.target for link in result.output_symlinks}
    check(links == {"dangling": "no", "to-dir": "dir", "to-file": "file"}, f"output_symlinks {links}")


@case(
    "k.old-fields", "output_files and output_directories of older clients, with the older symlink fields", "execution"
)
def old_fields(server: Endpoint) -> None:
    script = "echo f > file; mkdir dir; echo g > dir/g; ln -s file to-file; ln -s dir to-dir"
    result = server.run(
        "/bin/sh", "-c", script, output_files=["absent", "file", "to-file"], output_directories=["dir", "to-dir"]
    ).result
    check([output.path for output in result.output_files] == ["file"], f"files {result.output_files}")
    check([output.path for output in result.output_directories] == ["dir"], "directories differ")
    check({link.path for link in result.output_file_symlinks} >= {"to-file"}, "output_file_symlinks lacks to-file")
    check(
        {link.path for link in result.output_directory_symlinks} >= {"to-dir"}, "output_directory_symlinks lacks to-dir"
    )


@case("k.type-mismatch", "a directory where output_files asks for a file: FAILED_PRECONDITION", "execution")
def type_mismatch(server: Endpoint) -> None:
    code = refusal(server, server.put_action(shell("mkdir f", output_files=["f"])))
    check(code == 9, f"a directory for a file: {status_name(code)}")
    code = refusal(server, server.put_action(shell("rmdir d 2>/dev/null; echo > d", output_directories=["d"])))
    check(code == 9, f"a file for a directory: {status_name(code)}")


@case(
    "k.parents", "the folders above every output path are there before the command runs; the path is not", "execution"
)
def parents(server: Endpoint) -> None:
    done = server.run(
        "/bin/sh",
        "-c",
        "test ! -e a/b/c && echo x > a/b/c && test -d d/e && test ! -e d/e/f",
        output_paths=["a/b/c", "d/e/f"],
    )
    check([output.path for output in done.result.output_files] == ["a/b/c"], "outputs differ")
    server.run("/bin/sh", "-c", "echo x > o/f", output_files=["o/f"])


@case("k.dotdot", "output paths may climb with .. inside the input root, and not out of it", "execution")
def dotdot(server: Endpoint) -> None:
    inner = server.put(directory_of(directories={"inner": EMPTY}).SerializeToString())
    root = directory_of(directories={"middle": inner})
    done = server.run(
        "/bin/sh",
        "-c",
        "echo a > ../../top; echo b > ../side",
        root=root,
        working_directory="middle/inner",
        output_paths=["../../top", "../side"],
    )
    check(
        {output.path for output in done.result.output_files} == {"../../top", "../side"}, f"{done.result.output_files}"
    )
    code = refusal(server, server.put_action(shell("true", output_paths=["../outside"])))
    check(code in (3, 9), f"a path out of the root: {status_name(code)}")
    code = refusal(server, server.put_action(shell("true", output_paths=["/etc/passwd"])))
    check(code in (3, 9), f"an absolute path: {status_name(code)}")


def _directory_output(
    server: Endpoint, script: str, wanted: re_pb2.Command.OutputDirectoryFormat.ValueType, path: str = "d"
) -> re_pb2.OutputDirectory:
    done = server.run("/bin/sh", "-c", script, output_paths=[path], output_directory_format=wanted)
    (output,) = done.result.output_directories
    return output


@case("k.tree", "TREE_ONLY: a Tree with everything in it, canonical; the children's digests agree", "execution")
def tree(server: Endpoint) -> None:
    script = (
        "mkdir -p d/b/c d/a d/empty; echo 1 > d/z; echo 1 > d/b/c/f; echo 1 > d/a/f; "
        "chmod +x d/a/f; ln -s ../z d/a/l; ln -s /abs d/abs"
    )
    output = _directory_output(server, script, TREE_ONLY)
    found = server.tree(output)
    children = {key(digest_of(child.SerializeToString())): child for child in found.children}
    check(len(children) == len(found.children), "a child stands twice in the Tree")
    check([node.name for node in found.root.directories] == ["a", "b", "empty"], "root directories differ")
    check([(node.name, node.target) for node in found.root.symlinks] == [("abs", "/abs")], "root symlinks differ")
    by_name = {node.name: node.digest for node in found.root.directories}
    inner = children.get(key(by_name["a"]))
    if inner is None:
        raise Failed("a child named by its digest is not in the Tree")
    check(inner.files[0].is_executable and inner.symlinks[0].target == "../z", "d/a differs")
    wanted = {key(node.digest) for parent in [found.root, *found.children] for node in parent.directories}
    check(wanted - {key(EMPTY)} <= set(children), "children are missing from the Tree")
    if output.is_topologically_sorted:
        known = {key(node.digest) for node in found.root.directories}
        for child in found.children:
            check(
                key(digest_of(child.SerializeToString())) in known,
                "is_topologically_sorted is set, yet a child comes before its parent",
            )
            known |= {key(node.digest) for node in child.directories}


@case(
    "k.directory-only", "DIRECTORY_ONLY and TREE_AND_DIRECTORY: every Directory is in the store and agrees", "execution"
)
def directory_format(server: Endpoint) -> None:
    script = "mkdir -p d/b; echo 1 > d/f; echo 2 > d/b/g"
    for wanted in (DIRECTORY_ONLY, BOTH):
        output = _directory_output(server, script, wanted)
        check(output.HasField("root_directory_digest"), f"format {wanted}: root_directory_digest is unset")
        root = server.directory(output.root_directory_digest)
        check([node.name for node in root.files] == ["f"], "the root Directory differs")
        below = server.directory(root.directories[0].digest)
        check([node.name for node in below.files] == ["g"], "a Directory below differs")
        if wanted == BOTH or output.HasField("tree_digest"):
            check(server.tree(output).root == root, "Tree.root is not the Directory of root_directory_digest")


@case("k.empty-directory", "an empty output directory, and one that was only an input", "execution")
def empty_directory(server: Endpoint) -> None:
    output = _directory_output(server, "mkdir d", TREE_ONLY)
    check(server.tree(output).root == re_pb2.Directory(), "the Tree of an empty directory is not empty")
    root = directory_of(directories={"in": server.put(directory_of({"f": server.put(b"kept")}).SerializeToString())})
    done = server.run("/bin/sh", "-c", "true", root=root, output_paths=["in"])
    (kept,) = done.result.output_directories
    check([node.name for node in server.tree(kept).root.files] == ["f"], "untouched inputs are not in the output")


@case("k.input-as-output", "an input file that is an output path comes back, changed or not", "execution")
def input_as_output(server: Endpoint) -> None:
    same = server.put(b"same" + fresh())
    root = directory_of({"same": same, "other": server.put(fresh())})
    done = server.run("/bin/sh", "-c", "rm other; echo new > other", root=root, output_paths=["other", "same"])
    digests = {output.path: key(output.digest) for output in done.result.output_files}
    check(digests == {"same": key(same), "other": key(digest_of(b"new\n"))}, f"outputs {digests}")


@case("k.whole-root", 'the output path "" is the whole working directory', "execution")
def whole_root(server: Endpoint) -> None:
    root = directory_of({"f": server.put(b"kept")})
    done = server.run("/bin/sh", "-c", "mkdir d; echo x > d/x", root=root, output_paths=[""])
    check(len(done.result.output_directories) == 1, f"{len(done.result.output_directories)} output directories")
    (output,) = done.result.output_directories
    found = server.tree(output).root
    check(output.path == "", f"path {output.path!r}")
    check(
        [node.name for node in found.files] == ["f"] and [node.name for node in found.directories] == ["d"],
        "contents differ",
    )


@case("k.nested", "an output path inside another output path", "execution")
def nested(server: Endpoint) -> None:
    done = server.run("/bin/sh", "-c", "mkdir -p d/e; echo x > d/e/f", output_paths=["d", "d/e/f"])
    check([output.path for output in done.result.output_directories] == ["d"], "the directory is missing")
    check([output.path for output in done.result.output_files] == ["d/e/f"], "the file inside is missing")


@case("k.odd-names", "output names with spaces, colons, newlines and umlauts", "execution")
def odd_names(server: Endpoint) -> None:
    script = "mkdir d; for n in 'a b' 'c:d' 'ümlaut' '-x' 'q\"q'; do echo > \"d/$n\"; done"
    names = [node.name for node in server.tree(_directory_output(server, script, TREE_ONLY)).root.files]
    check(names == sorted(["a b", "c:d", "ümlaut", "-x", 'q"q'], key=str.encode), f"names {names}")


@case(
    "k.node-properties",
    "output_node_properties: unix_mode and mtime when supported, else INVALID_ARGUMENT",
    "execution",
)
def node_properties(server: Endpoint) -> str:
    supported = list(server.capabilities.execution_capabilities.supported_node_properties)
    command = shell(
        "echo x > f; chmod 750 f; touch -d @1000000000 f",
        output_paths=["f"],
        output_node_properties=["mtime", "unix_mode"],
    )
    if {"mtime", "unix_mode"} <= set(supported):
        done = server.execute(server.put_action(command))
        properties = done.result.output_files[0].node_properties
        check(properties.unix_mode.value & 0o777 == 0o750, f"unix_mode {properties.unix_mode.value:o}")
        check(properties.mtime.seconds == 1_000_000_000, f"mtime {properties.mtime.seconds}")
    command.output_node_properties[:] = ["nonsense"]
    code = refusal(server, server.put_action(command))
    check(code == 3, f"an unsupported property: {status_name(code)}")
    return f"supported: {', '.join(supported) or 'none'}"


@case("k.outputs-stored", "every blob that a result names is in the store when the answer comes", "execution")
def outputs_stored(server: Endpoint) -> None:
    script = (
        "mkdir d; for i in 1 2 3 4 5 6 7 8 9; do echo $i$(od -An -N8 -tx8 /dev/urandom) > d/$i; done; cp d/1 f; cat d/*"
    )
    result = server.run("/bin/sh", "-c", script, output_paths=["d", "f"], output_directory_format=BOTH).result
    (output,) = result.output_directories
    needed = [output.tree_digest, result.output_files[0].digest]
    needed += [node.digest for node in server.tree(output).root.files]
    if result.HasField("stdout_digest"):
        needed.append(result.stdout_digest)
    check(not server.missing(needed), f"{len(server.missing(needed))} of {len(needed)} blobs are absent")
