//! From the kernel command line to the mounted root: kinds of initramfs, kinds of disks, and what
//! happens when something is wrong. QEMU starts the kernel itself. The machines are in `vm/`.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use anyhow::{Result, ensure};

use vm::qemu::Kernel;
use vm::{Echo, Host, RootImage, Vm};

/// Where the console is; without `quiet`, so that a log has all.
const CONSOLE: &str = "console=ttyS0,115200";

#[test]
fn bookworm_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("bookworm")
}

#[test]
fn trixie_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("trixie")
}

#[test]
fn forky_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("forky")
}

/// Boots a layer of the installed host with the kernel and each initramfs of a release of Debian.
fn boots_with_both_kinds(suite: &str) -> Result<()> {
    let image = RootImage::of(suite)?;
    for (kind, initrd) in [
        ("systemd", image.initrd()),
        ("hooks", image.initrd_without_systemd()),
    ] {
        let name = format!("{suite}-{kind}");
        let disk = Host::prepared()?.disk(&name)?;
        let kernel = Kernel {
            vmlinuz: &image.vmlinuz(),
            initrd: &initrd,
            cmdline: &format!("{CONSOLE} imgbased.layer=Base-0.2"),
        };
        let mut vm = disk.boot_kernel("once", &kernel, Vec::new(), Echo::Silent)?;
        vm.log_in()?;
        runs_layer(&mut vm, "HostVG", "Base-0.2")?;
        let record = vm.ok("cat /run/imgbased/boot.json")?;
        let record: serde_json::Value = serde_json::from_str(&record)?;
        assert_eq!(record["layer"], "Base-0.2");
        let phases = record["phases"].as_array().into_iter().flatten();
        let names: Vec<_> = phases.map(|phase| phase["name"].as_str()).collect();
        assert_eq!(names, ["wait", "activate", "check", "mount"].map(Some));
        vm.say(&format!("{} ms", record["milliseconds"]));
        vm.power_off()?;
    }
    Ok(())
}

/// Refuses a system whose root is not this layer, or where other layers are active as well.
fn runs_layer(vm: &mut Vm, vg: &str, layer: &str) -> Result<()> {
    let (vg, layer) = (vg.replace('-', "--"), layer.replace('-', "--"));
    let source = vm.ok("findmnt -no SOURCE /")?;
    ensure!(
        source == format!("/dev/mapper/{vg}-{layer}"),
        "the root is {source}"
    );
    let state = vm.run("systemctl is-system-running --wait")?.text;
    ensure!(
        state == "running",
        "the system is {state}: {:?}",
        vm.run("systemctl --failed")?
    );
    let active = vm.ok(
        "lvm lvs --noheadings -o lv_name --select 'lv_tags=imgbased:layer && lv_active=active'",
    )?;
    assert_eq!(active.trim().replace('-', "--"), layer);
    Ok(())
}
