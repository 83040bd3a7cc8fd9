# `<nix/fetchurl.nix>`: a derivation that Nix itself builds by downloading a file.
{
  url,
  name ? baseNameOf (toString url),
  hash ? "",
  md5 ? "",
  sha1 ? "",
  sha256 ? "",
  sha512 ? "",
  outputHash ? null,
  outputHashAlgo ? null,
  executable ? false,
  unpack ? false,
  system ? "",
}@arguments:
let
  # The first that is there, else sha256; `hash` says its algorithm itself.
  given = builtins.head (
    builtins.filter (candidate: candidate.value != "") [
      { value = hash; algorithm = ""; }
      { value = sha512; algorithm = "sha512"; }
      { value = sha1; algorithm = "sha1"; }
      { value = md5; algorithm = "md5"; }
    ]
    ++ [ { value = sha256; algorithm = "sha256"; } ]
  );
in
derivation {
  inherit
    name
    url
    executable
    unpack
    ;
  outputHash = arguments.outputHash or given.value;
  outputHashAlgo = arguments.outputHashAlgo or given.algorithm;
  outputHashMode = if unpack || executable then "recursive" else "flat";
  urls = [ url ];
  builder = "builtin:fetchurl";
  system = "builtin";
  preferLocalBuild = true;
  impureEnvVars = [
    "http_proxy"
    "https_proxy"
    "ftp_proxy"
    "all_proxy"
    "no_proxy"
  ];
}
