//! What an image costs that comes from a web server: `ci/bench delivery` runs it. The server is in the same machine, so
//! that no network counts.

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod bench;
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod vm;

use anyhow::Result;

use bench::table::{Limit, Row, Samples, Unit};
use bench::{
    FORGET, REMOVE_FLOOR, Subject, memory_row, number, peak_memory, report, shell, times, tools,
};
use vm::Host;
use vm::guest::{script, script_with};
use vm::qemu::Vm;

/// How often an image is taken.
const RUNS: usize = 3;

/// The disk of the server, the size of the image, and how many megabytes it has beside what a host needs.
const DISK: &str = "server";
const IMAGE: [&str; 2] = ["1G", "200"];
const ADDRESS: &str = "http://127.0.0.1:8080/images/myhost-10.raw.zst";

const UPDATE: &str = "imgbased-helper update";
/// What an update has made is gone, and the running layer boots next.
const TAKE_BACK: &str = "imgbased-helper rollback; imgbased-helper layer remove Base-1.1; \
                         imgbased-helper base remove --yes Base-1";
/// A look that finds something ends with 3.
const CHECK: &str = "imgbased-helper update --check > /run/output || [ $? -eq 3 ]";

fn main() -> Result<()> {
    let mut vm = start()?;
    let mut rows = Vec::new();
    for part in [check, update] {
        rows.extend(part(&mut vm)?);
        // What comes later may fail.
        report(&mut vm, "delivery", &rows)?;
    }
    Ok(())
}

/// A running host with a server that has a newer image.
fn start() -> Result<Vm> {
    let disk = Host::prepared()?.disk("bench-delivery")?;
    let disks = vec![tools()?, disk.spare(DISK, "6G")?];
    let mut vm = disk.boot_with("once", disks)?;
    vm.log_in()?;
    vm.say("an image on a server: making it");
    shell(&mut vm, &script("make-next")?)?;
    let [size, more] = IMAGE;
    shell(&mut vm, &script_with("serve-images", &[DISK, size, more])?)?;
    // What the host lacks is no part of the layer.
    shell(
        &mut vm,
        "mkdir /run/tools /run/small; mount -t tmpfs -o size=40m,mode=700 none /run/small; \
         tar -C /run/tools --extract --strip-components=3 --file /dev/disk/by-id/virtio-tools ./usr/bin/time; \
         echo Spool= >> /etc/imgbased/imgbased.conf",
    )?;
    vm.ok("export PATH=/run/tools:$PATH")?;
    let sizes = shell(
        &mut vm,
        "stat -c '%n %s' /run/server/images/myhost-10.raw.zst",
    )?;
    vm.say(&format!("bytes of {sizes}"));
    Ok(vm)
}

/// Has what is fetched be kept in this directory.
fn spool_at(dir: &str) -> String {
    format!("sed -i 's|^Spool=.*|Spool={dir}|' /etc/imgbased/imgbased.conf")
}

/// A look at a directory that has not changed since the one before.
fn check(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say("looks at a directory");
    shell(vm, CHECK)?;
    let requests = number(
        vm,
        &format!(": > /run/nginx.log; {CHECK}; sleep 1; wc -l < /run/nginx.log"),
    )?;
    Ok(vec![Row {
        what: "update --check, nothing changed",
        unit: Unit::Requests,
        measured: Samples::one(requests),
        other: None,
        limit: Limit::AtMost(1.0),
    }])
}

/// `update` beside the bare commands, with room to keep what is fetched and without.
fn update(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say("update, and curl with zstd");
    let ours = |dir: &str| Subject {
        prepare: format!("{}; {FORGET}", spool_at(dir)),
        run: format!("{UPDATE}; sync"),
        clean: TAKE_BACK.into(),
    };
    let floor = format!(
        "lvm lvcreate --yes --type thin --virtualsize {} --thinpool ImagePool --setactivationskip y -K -ay \
         --name Floor HostVG",
        IMAGE[0]
    );
    let curl = Subject {
        prepare: format!("{floor}; {FORGET}"),
        run: format!(
            "curl --fail --silent --show-error {ADDRESS} | zstd -dc | \
             dd of=/dev/mapper/HostVG-Floor bs=1M iflag=fullblock conv=sparse,fsync; sync"
        ),
        clean: REMOVE_FLOOR.into(),
    };
    let add = Subject {
        prepare: FORGET.into(),
        run: format!("imgbased-helper base add {ADDRESS}; sync"),
        clean: "imgbased-helper base remove --yes Base-1".into(),
    };
    let subjects = [ours("/run/server/spool"), curl, add, ours("/run/small")];
    let [kept, curl, add, straight] = times(vm, RUNS, &subjects)?;
    vm.say("memory of an update");
    shell(vm, &format!("{}; {FORGET}", spool_at("/run/server/spool")))?;
    let [own, all] = peak_memory(vm, UPDATE)?;
    shell(vm, TAKE_BACK)?;
    let row = |what, measured, limit| Row {
        what,
        unit: Unit::Seconds,
        measured,
        other: Some(("curl, zstd, dd conv=sparse,fsync", curl.clone())),
        limit,
    };
    Ok(vec![
        row("update, 1 GiB", kept, Limit::AtMost(1.15)),
        row("  the base of it", add, Limit::None),
        row(
            "update, 1 GiB, no room to keep it",
            straight,
            Limit::AtMost(1.15),
        ),
        memory_row("update: memory of the helper", own),
        memory_row("update: memory of the largest of it and its programs", all),
    ])
}
