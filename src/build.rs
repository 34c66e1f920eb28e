//! Stops a build that would not give a static binary: an initramfs has no place for its libraries.
//! Leaves what only backtraces need out of a release.

use std::env::var;

fn main() {
    println!("cargo:rerun-if-env-changed=CARGO_CFG_TARGET_FEATURE");
    println!("cargo:rerun-if-changed=src/no-unwind-tables.ld");
    let features = var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    // libFuzzer needs a dynamic linker (ci/fuzz).
    let is_fuzzing = var("CARGO_CFG_FUZZING").is_ok();
    assert!(
        is_fuzzing || features.split(',').any(|feature| feature == "crt-static"),
        "the binary has to be static, but crt-static is off. RUSTFLAGS in the environment replaces \
         the flags of .cargo/config.toml: unset it, or add `-C target-feature=+crt-static` to it"
    );
    if var("PROFILE").is_ok_and(|profile| profile == "release") {
        let dir = var("CARGO_MANIFEST_DIR").unwrap_or_default();
        println!("cargo:rustc-link-arg-bins=-Wl,-T,{dir}/src/no-unwind-tables.ld");
        println!("cargo:rustc-link-arg-bins=-Wl,--no-eh-frame-hdr");
    }
}
