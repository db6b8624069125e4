//! Gives the shared library its name of the interface: programs that are linked with it look for that.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libfingerpost.so.0");
}
