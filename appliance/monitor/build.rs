//! Links the image with its own script; on a host there is nothing to say.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../images/monitor.ld");
    println!("cargo::rerun-if-changed={script}");
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    println!("cargo::rustc-link-arg-bins=-T{script}");
    println!("cargo::rustc-link-arg-bins=-no-pie");
}
