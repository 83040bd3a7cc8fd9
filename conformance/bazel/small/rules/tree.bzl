"""Rules with directory outputs."""

def _tree_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [out],
        arguments = [out.path, str(ctx.attr.count)],
        command = """
set -e
mkdir -p "$1/deep/er" "$1/empty"
for i in $(seq 1 $2); do echo "file $i" > "$1/deep/$i.txt"; done
cp "$1/deep/1.txt" "$1/deep/er/same.txt"
ln -s deep/1.txt "$1/link.txt"
echo '#!/bin/sh' > "$1/run.sh"
echo 'echo it runs' >> "$1/run.sh"
chmod +x "$1/run.sh"
""",
        mnemonic = "Tree",
    )
    return [DefaultInfo(files = depset([out]))]

tree = rule(
    implementation = _tree_impl,
    attrs = {"count": attr.int(default = 3)},
)

def _listing_impl(ctx):
    src = ctx.files.src[0]
    out = ctx.actions.declare_file(ctx.label.name + ".txt")
    ctx.actions.run_shell(
        inputs = [src],
        outputs = [out],
        arguments = [src.path, out.path],
        command = "(cd \"$1\" && find . -type f | sort && cat link.txt && ./run.sh) > \"$2\"",
        mnemonic = "Listing",
    )
    return [DefaultInfo(files = depset([out]), runfiles = ctx.runfiles(files = [out]))]

listing = rule(
    implementation = _listing_impl,
    attrs = {"src": attr.label(allow_files = True)},
)
