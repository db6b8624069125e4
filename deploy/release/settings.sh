# Sourced in the project's root, with $target: lets cargo build the same bytes of the same commit in every directory.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/dist}
export SOURCE_DATE_EPOCH CARGO_TARGET_DIR CARGO_INCREMENTAL=0 CARGO_PROFILE_RELEASE_STRIP=symbols

# Where the files lie must not be in the programs: messages of panics and `assert` name files.
cargo_home=${CARGO_HOME:-$HOME/.cargo}
maps=("$PWD=/fingerpost" "$CARGO_TARGET_DIR=/target" "$cargo_home=/cargo" "$(rustc --print sysroot)=/rust")
rust=() c=()
for map in "${maps[@]}"; do
    rust+=("--remap-path-prefix=$map")
    c+=("-ffile-prefix-map=$map")
done
IFS=$'\x1f'
export CARGO_ENCODED_RUSTFLAGS="${rust[*]}"
IFS=' '

# For the libraries in C, Debian's hardening; Rust's own flags are as strict by default. Debug information is stripped anyway.
case $target in
    x86_64-*) architecture=amd64 ;;
    aarch64-*) architecture=arm64 ;;
    *) echo "error: $target: expected a target for x86_64 or aarch64" >&2; exit 2 ;;
esac
hardening=$(DEB_BUILD_MAINT_OPTIONS=hardening=+all dpkg-architecture --force --host-arch "$architecture" \
    --command dpkg-buildflags --get CFLAGS)
export "CFLAGS_${target//-/_}=$hardening -g0 ${c[*]}"
