//! Links the kernel with its own script; on a host there is nothing to link.

fn main() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/foreign.ld");
    println!("cargo::rerun-if-changed={script}");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let script = format!("-T{script}");
    for argument in ["-no-pie", &script, "--build-id=sha1", "-zmax-page-size=4096"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
