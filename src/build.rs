//! Stops a build that would not give a static binary: an initramfs has no place for its libraries.

fn main() {
    println!("cargo:rerun-if-env-changed=CARGO_CFG_TARGET_FEATURE");
    let features = std::env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    assert!(
        features.split(',').any(|feature| feature == "crt-static"),
        "the binary has to be static, but crt-static is off. RUSTFLAGS in the environment replaces \
         the flags of .cargo/config.toml: unset it, or add `-C target-feature=+crt-static` to it"
    );
}
