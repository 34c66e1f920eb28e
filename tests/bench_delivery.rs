//! What an image costs that comes from a web server or a registry: `ci/bench delivery` runs it. The servers are in the
//! same machine, so that no network counts.

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod bench;
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod vm;

use anyhow::Result;

use bench::table::{Limit, Row, Samples, Unit};
use bench::{
    FORGET, Machine, REMOVE_FLOOR, Subject, UNMOUNT_FLOOR, create_floor, measure, memory_row,
    mount_floor, number, peak_memory, shell, times, tools,
};
use vm::guest::{script, script_with};
use vm::qemu::{Disk, Vm};
use vm::{Host, registry_programs};

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
/// What was fetched is fetched again.
const EMPTY_SPOOL: &str = "rm -rf /run/server/spool";
/// A look that finds something ends with 3.
const CHECK: &str = "imgbased-helper update --check > /run/output || [ $? -eq 3 ]";

fn main() -> Result<()> {
    let machines = [
        Machine {
            start: with_web_server,
            parts: &[("check", check), ("update", update)],
        },
        Machine {
            start: with_registry,
            parts: &[("difference", by_difference), ("layers", in_layers)],
        },
    ];
    measure("delivery", &machines)
}

/// A running host with a web server that has a newer image.
fn with_web_server() -> Result<Vm> {
    let disk = Host::prepared()?.disk("bench-delivery")?;
    let disks = vec![tools()?, disk.spare(DISK, "6G")?];
    let mut vm = disk.boot_with("once", disks)?;
    vm.log_in()?;
    vm.say("an image on a server: making it");
    shell(&mut vm, &script("make-next")?)?;
    let [size, more] = IMAGE;
    shell(&mut vm, &script_with("serve-images", &[DISK, size, more])?)?;
    shell(
        &mut vm,
        "mkdir /run/small; mount -t tmpfs -o size=40m,mode=700 none /run/small; \
         echo Spool= >> /etc/imgbased/imgbased.conf",
    )?;
    add_time(&mut vm)?;
    let sizes = shell(
        &mut vm,
        "stat -c '%n %s' /run/server/images/myhost-10.raw.zst",
    )?;
    vm.say(&format!("bytes of {sizes}"));
    Ok(vm)
}

/// Adds time(1). What the host lacks is no part of the layer.
fn add_time(vm: &mut Vm) -> Result<()> {
    shell(
        vm,
        "mkdir /run/tools; \
         tar -C /run/tools --extract --strip-components=3 --file /dev/disk/by-id/virtio-tools ./usr/bin/time",
    )?;
    vm.ok("export PATH=/run/tools:$PATH").map(drop)
}

/// A running host with a registry that has a newer image, once in two layers, and once in one of which parts can be
/// fetched. What the running layer's base holds is known.
fn with_registry() -> Result<Vm> {
    let disk = Host::prepared()?.disk("bench-registry")?;
    let programs = Disk::raw_read_only(&registry_programs()?, "small");
    let disks = vec![tools()?, programs, disk.spare("spare", "6G")?];
    let mut vm = disk.boot_with("once", disks)?;
    vm.log_in()?;
    add_time(&mut vm)?;
    vm.say("images in a registry: making them");
    shell(&mut vm, "imgbased-helper base verify --record Base-0")?;
    for name in [
        "add-registry",
        "make-next",
        "start-registry",
        "serve-registry",
        "serve-chunked",
    ] {
        shell(&mut vm, &script(name)?)?;
    }
    shell(
        &mut vm,
        "mkdir -p /etc/imgbased; printf '[Source]\\nSpool=/run/server/spool\\n' > /etc/imgbased/imgbased.conf",
    )?;
    let layer = shell(
        &mut vm,
        "stat -c %s /run/server/chunked/blobs/sha256/* | sort -n | tail -n 1",
    )?;
    vm.say(&format!("bytes of the layer: {layer}"));
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
    let curl = Subject {
        prepare: format!("{}; {FORGET}", create_floor(IMAGE[0])),
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

/// `update` by the parts of a layer that no base has, beside the whole of the layer. policy.json decides which: where
/// something has to be signed, skopeo has to see all of it.
fn by_difference(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say("update by difference, and of the whole");
    let policy = |others: &str| {
        format!(
            "echo '{{\"default\":[{{\"type\":\"insecureAcceptAnything\"}}],\"transports\":{{\"docker\":{{{others}}}}}}}' \
             > /etc/containers/policy.json"
        )
    };
    let run = "imgbased-helper update docker://127.0.0.1:5000/host:chunked; sync";
    let subject = |others| Subject {
        prepare: format!("{}; {EMPTY_SPOOL}; {FORGET}", policy(others)),
        run: run.into(),
        clean: TAKE_BACK.into(),
    };
    let subjects = [
        subject(""),
        subject("\"example.org/other\":[{\"type\":\"reject\"}]"),
    ];
    let [difference, whole] = times(vm, RUNS, &subjects)?;
    shell(vm, &policy(""))?;
    Ok(vec![Row {
        what: "update by difference",
        unit: Unit::Seconds,
        measured: difference,
        other: Some(("of the whole", whole)),
        limit: Limit::AtMost(0.25),
    }])
}

/// `base add` and `update` of an image in two layers, beside skopeo and tar.
fn in_layers(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say("an image in layers, and skopeo with tar");
    let image = "docker://127.0.0.1:5000/host:one";
    let skopeo = Subject {
        prepare: format!(
            "{}; rm -rf /run/server/copy; {FORGET}",
            mount_floor("Base-0")
        ),
        run: format!(
            "skopeo copy --quiet {image} dir:/run/server/copy; \
             for layer in $(grep -o '+zstd\",\"digest\":\"sha256:[0-9a-f]*' /run/server/copy/manifest.json | sed 's/.*://'); do \
             zstd -dc /run/server/copy/$layer | \
             tar -C /run/floor --extract --preserve-permissions --numeric-owner --xattrs --xattrs-include=\"*\"; done; sync"
        ),
        clean: UNMOUNT_FLOOR.into(),
    };
    let ours = |run: String, clean: &str| Subject {
        prepare: format!("{EMPTY_SPOOL}; {FORGET}"),
        run: format!("{run}; sync"),
        clean: clean.into(),
    };
    let subjects = [
        ours(format!("imgbased-helper update {image}"), TAKE_BACK),
        skopeo,
        ours(
            format!("imgbased-helper base add {image}"),
            "imgbased-helper base remove --yes Base-1",
        ),
    ];
    let [update, skopeo, add] = times(vm, RUNS, &subjects)?;
    vm.say("memory of an update");
    shell(vm, &format!("{EMPTY_SPOOL}; {FORGET}"))?;
    let [own, _] = peak_memory(vm, &format!("imgbased-helper update {image}"))?;
    shell(vm, TAKE_BACK)?;
    let row = |what, measured, limit| Row {
        what,
        unit: Unit::Seconds,
        measured,
        other: Some(("skopeo copy, tar", skopeo.clone())),
        limit,
    };
    Ok(vec![
        row("update, from a registry", update, Limit::AtMost(1.15)),
        row("  the base of it", add, Limit::None),
        memory_row("update: memory of the helper", own),
    ])
}
