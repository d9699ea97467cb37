//! Links the appliance with its own script; the host build needs none.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../images/appliance.ld");
    println!("cargo::rerun-if-changed={script}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    // The target's default is a static PIE; this image has one address, known to all.
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rustc-link-arg-bins=-T{script}");
    println!("cargo::rustc-link-arg-bins=--build-id=sha1");
    println!("cargo::rustc-link-arg-bins=-zmax-page-size=4096");
}
