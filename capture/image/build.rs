//! Tells the linker how the capture image is laid out; on a host there is nothing to say.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let package = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let script = Path::new(&package).join("../../images/capture.ld");
    println!("cargo::rerun-if-changed={}", script.display());
    println!("cargo::rustc-link-arg-bins=-T{}", script.display());
    // The build-id names the very image that wrote a dump; pages of 4 KiB and no RELRO,
    // because the image relocates and protects itself.
    for argument in ["--build-id=sha1", "-zmax-page-size=4096", "-znorelro", "-znognustack"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
