//! What layers, bases and the layout cost beside the commands that nobody can do without, and beside
//! other tools: `ci/bench storage` runs it. All of it is measured in one machine.

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod bench;
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod vm;

use anyhow::{Result, ensure};

use bench::table::{Limit, Row, Samples, Unit};
use bench::{
    FORGET, Machine, REMOVE_FLOOR, Subject, UNPACK_TOOLS, create_floor, image, measure, memory_row,
    number, peak_memory, pool_data, shell, times, tools,
};
use vm::qemu::{Disk, Vm};
use vm::{Host, say, store};

/// How often commands are run that take seconds, and such that copy gigabytes.
const RUNS: usize = 7;
const COPIES: usize = 3;
/// The same for commands that differ by less than their times do from run to run.
const CLOSE_RUNS: usize = 15;

const LAYERS: u32 = 500;
/// Entries that the host is installed with, and so many of each tool while there are few or many.
const OWN_ENTRIES: u32 = 3;
const FEW_ENTRIES: u32 = 5;
const MANY_ENTRIES: u32 = 100;

const ENTRIES: &str = "/boot/loader/entries";
/// Where the others are kept while there are to be few.
const MORE_ENTRIES: &str = "/boot/more";

/// What a layer cannot be made without.
const SNAPSHOT: &str = "lvm lvcreate --yes --snapshot --permission rw --setactivationskip y -K -ay \
                        --name Floor HostVG/Base-0";
/// Removes the layer that was made last.
const REMOVE_LAYER: &str = "imgbased-helper layer remove $(imgbased-helper layer latest)";

fn main() -> Result<()> {
    let machine = Machine {
        start,
        parts: &[
            ("layer-add", layer_add),
            ("base-add", base_add),
            ("layout", layout),
        ],
    };
    measure("storage", &[machine])
}

/// A running host with the other tools and the large images.
fn start() -> Result<Vm> {
    let host = Host::prepared()?;
    let tools = tools()?;
    say("large images: making them");
    let images = image::make(&store::scratch("bench-images")?)?;
    let disks = vec![
        tools,
        Disk::raw_read_only(&images.first, "first"),
        Disk::raw_read_only(&images.second, "second"),
    ];
    let disk = host.disk("bench-storage")?;
    let mut vm = disk.boot_with("once", disks)?;
    vm.log_in()?;
    for command in [
        UNPACK_TOOLS,
        // boom and snapm boot the kernel that a package manager puts here.
        "cp /boot/imgbased/vmlinuz-* /boot/vmlinuz-$(uname -r)",
        "cp /boot/imgbased/initrd-* /boot/initrd.img-$(uname -r)",
        "mkdir -m 700 /run/snapm; mkdir -p /etc/snapm/schedule.d",
        "boom config create",
        "boom profile create --from-host --uname-pattern . \
             --initramfs-pattern '/initrd.img-%{version}'",
    ] {
        shell(&mut vm, command)?;
    }
    make_entries(&mut vm)?;
    vm.say("tools and entries are there");
    Ok(vm)
}

/// Has boom make as many entries as the host has of ours, and copies one of both kinds. Neither tool
/// understands the other's.
fn make_entries(vm: &mut Vm) -> Result<()> {
    for n in 1..=OWN_ENTRIES {
        shell(
            vm,
            &format!("boom create --title more-{n} --root-lv HostVG/Base-0.1"),
        )?;
    }
    let last = 1000 + MANY_ENTRIES - OWN_ENTRIES;
    shell(
        vm,
        &format!(
            "mkdir {MORE_ENTRIES}; cd {ENTRIES}; boom=$(grep -lx 'title more-1' *.conf); \
             for n in $(seq 1001 {last}); do \
             sed s/Base-0[.]1/Base-0.$n/ imgbased-Base-0.1.conf > {MORE_ENTRIES}/imgbased-Base-0.$n.conf; \
             sed \"s/^title .*/title more-$n/\" $boom > {MORE_ENTRIES}/more-$n.conf; done"
        ),
    )?;
    for (entries, wanted) in [(few_entries(), FEW_ENTRIES), (many_entries(), MANY_ENTRIES)] {
        shell(vm, &entries)?;
        let of_boom: u32 = number(vm, "boom list --no-headings | wc -l")?;
        shell(vm, "imgbased-helper layer add Base-0")?;
        // Those on trial are there once more, for a GRUB that reads the entries itself.
        let listed = "grep -c \"^menuentry .*--id 'imgbased-\" /boot/grub/imgbased.cfg";
        let ours = number::<u32>(vm, listed)? - 1;
        shell(vm, REMOVE_LAYER)?;
        ensure!(
            of_boom == wanted && ours == wanted,
            "{ours} entries of ours and {of_boom} of boom instead of {wanted} each"
        );
    }
    Ok(())
}

/// Leaves few entries of both kinds.
fn few_entries() -> String {
    let last = 1000 + FEW_ENTRIES - OWN_ENTRIES;
    format!(
        "cd {MORE_ENTRIES}; for file in *; do rm -f {ENTRIES}/$file; done; \
         for n in $(seq 1001 {last}); do cp *[.-]$n.conf {ENTRIES}; done"
    )
}

fn many_entries() -> String {
    format!("cp {MORE_ENTRIES}/* {ENTRIES}")
}

/// `layer add` beside its bare commands, boom and snapm, with few and with many entries.
fn layer_add(vm: &mut Vm) -> Result<Vec<Row>> {
    let ours_with = |entries: String| Subject {
        prepare: entries,
        run: "imgbased-helper layer add Base-0".into(),
        clean: REMOVE_LAYER.into(),
    };
    let boom_with = |entries: String| Subject {
        prepare: entries,
        run: format!("{SNAPSHOT}; boom create --title floor --root-lv HostVG/Floor"),
        clean: format!("{REMOVE_FLOOR}; rm $(grep -lx 'title floor' {ENTRIES}/*.conf)"),
    };
    let snapm_with = |entries: String| Subject {
        prepare: entries,
        run: "snapm snapset create --bootable floor /".into(),
        // It, too, takes its time with many entries.
        clean: format!("{}; snapm snapset delete floor", few_entries()),
    };
    let bare = Subject {
        prepare: few_entries(),
        run: format!(
            "{SNAPSHOT}; e2fsck -fp /dev/mapper/HostVG-Floor || [ $? -lt 4 ]; \
             tune2fs -U random /dev/mapper/HostVG-Floor; \
             cp {ENTRIES}/imgbased-Base-0.1.conf {ENTRIES}/floor.conf; sync -f /boot"
        ),
        clean: format!("{REMOVE_FLOOR}; rm {ENTRIES}/floor.conf"),
    };
    vm.say("layer add, boom and snapm");
    let subjects = [
        bare,
        ours_with(few_entries()),
        boom_with(few_entries()),
        snapm_with(few_entries()),
        ours_with(many_entries()),
        boom_with(many_entries()),
        snapm_with(many_entries()),
    ];
    let [bare, ours, boom, snapm, ours_many, boom_many, snapm_many] = times(vm, RUNS, &subjects)?;
    // By themselves: what the other tools leave to be done would count for what follows them.
    vm.say("layer add, few and many entries");
    let [alone, alone_many] = times(
        vm,
        CLOSE_RUNS,
        &[ours_with(few_entries()), ours_with(many_entries())],
    )?;
    shell(vm, &few_entries())?;
    let processes = lvm_processes(vm, "imgbased-helper layer add Base-0")?;
    shell(vm, REMOVE_LAYER)?;

    let row = |what, measured: &Samples, name, other: &Samples, limit| Row {
        what,
        unit: Unit::Seconds,
        measured: measured.clone(),
        other: Some((name, other.clone())),
        limit,
    };
    let below = Limit::Below(1.0);
    Ok(vec![
        row(
            "layer add",
            &ours,
            "its bare commands",
            &bare,
            Limit::AtMost(1.10),
        ),
        processes_row("layer add: lvm processes", processes, 3.0),
        row(
            "layer add, 5 entries",
            &ours,
            "lvcreate, boom",
            &boom,
            below,
        ),
        row(
            "layer add, 100 entries",
            &ours_many,
            "lvcreate, boom",
            &boom_many,
            below,
        ),
        row("layer add, 5 entries", &ours, "snapm", &snapm, below),
        row(
            "layer add, 100 entries",
            &ours_many,
            "snapm",
            &snapm_many,
            below,
        ),
        row(
            "layer add, 100 entries",
            &alone_many,
            "with 5",
            &alone,
            Limit::AtMost(1.10),
        ),
        row(
            "lvcreate, boom, 100 entries",
            &boom_many,
            "with 5",
            &boom,
            Limit::None,
        ),
        row(
            "snapm, 100 entries",
            &snapm_many,
            "with 5",
            &snapm,
            Limit::None,
        ),
    ])
}

/// `base add` beside dd: time, space and memory; and a base that differs little from another one.
fn base_add(vm: &mut Vm) -> Result<Vec<Row>> {
    let copy = "dd if=/dev/disk/by-id/virtio-first of=/dev/mapper/HostVG-Floor bs=4M \
                conv=sparse,fsync; sync";
    let help = shell(vm, "imgbased-helper base add --help")?;
    let whole = if help.contains("--no-share") {
        "--no-share"
    } else {
        ""
    };
    let add = format!("imgbased-helper base add --name Large {whole} /dev/disk/by-id/virtio-first");
    let floor = create_floor("$(blockdev --getsize64 /dev/disk/by-id/virtio-first)b");
    vm.say("base add and dd");
    let [ours, dd] = times(
        vm,
        COPIES,
        &[
            Subject {
                prepare: FORGET.into(),
                run: format!("{add}; sync"),
                clean: "imgbased-helper base remove --yes Large".into(),
            },
            Subject {
                prepare: format!("{floor}; {FORGET}"),
                run: copy.into(),
                clean: REMOVE_FLOOR.into(),
            },
        ],
    )?;

    let before = pool_data(vm)?;
    shell(vm, &format!("{floor}; {copy}"))?;
    let dd_data = pool_data(vm)? - before;
    shell(vm, REMOVE_FLOOR)?;
    let before = pool_data(vm)?;
    let [own, all] = peak_memory(vm, &add)?;
    let data = pool_data(vm)? - before;

    vm.say("a base that differs in 5 % of its blocks");
    let (before, written) = (pool_data(vm)?, written_to_pool(vm)?);
    shell(
        vm,
        "imgbased-helper base add --name Second /dev/disk/by-id/virtio-second",
    )?;
    let second_data = pool_data(vm)? - before;
    let second_written = written_to_pool(vm)? - written;
    shell(
        vm,
        "imgbased-helper base remove --yes Second; imgbased-helper base remove --yes Large",
    )?;

    let bytes = |what, measured, name, other, limit| Row {
        what,
        unit: Unit::Bytes,
        measured: Samples::one(measured),
        other: Some((name, Samples::one(other))),
        limit: Limit::AtMost(limit),
    };
    Ok(vec![
        Row {
            what: "base add, 4 GiB",
            unit: Unit::Seconds,
            measured: ours,
            other: Some(("dd conv=sparse,fsync", dd)),
            limit: Limit::AtMost(1.15),
        },
        bytes(
            "base add: pool data",
            data,
            "dd conv=sparse,fsync",
            dd_data,
            1.0,
        ),
        bytes(
            "second base, 5 % other: pool data",
            second_data,
            "first base",
            data,
            0.1,
        ),
        bytes(
            "second base, 5 % other: written",
            second_written,
            "first base",
            data,
            0.1,
        ),
        memory_row("base add: memory of the helper", own),
        memory_row(
            "base add: memory of the largest of it and its programs",
            all,
        ),
    ])
}

/// `layout` with many layers beside lvs.
fn layout(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say(&format!("{LAYERS} layers: making them"));
    let there: u32 = number(vm, "imgbased-helper layer list | wc -l")?;
    // In the metadata only, as copies of a layer that is inactive: to have lvm2 make so many takes the
    // better part of an hour, and neither command looks at the pool.
    shell(
        vm,
        &format!(
            "lvm vgcfgbackup -qq -f /run/group HostVG; \
             awk -v count={} '/^\\t\\tBase-0[.]2 {{/ {{ inside = 1 }} \
                 inside {{ lines = lines $0 \"\\n\" }} {{ print }} \
                 inside && /^\\t\\t}}/ {{ inside = 0; for (n = 2001; n <= 2000 + count; n++) {{ copy = lines; \
                     sub(/Base-0[.]2/, \"Base-0.\" n, copy); sub(/device_id = [0-9]+/, \"device_id = \" n, copy); \
                     sub(/id = \"[^\"]*\"/, \"id = \\\"aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-00\" n \"\\\"\", copy); \
                     printf \"%s\", copy }} }}' /run/group > /run/crowded; \
             lvm vgcfgrestore -qq --yes --force -f /run/crowded HostVG > /run/output 2>&1; \
             cd {ENTRIES}; for n in $(seq 2001 {}); do \
             sed s/Base-0[.]1/Base-0.$n/ imgbased-Base-0.1.conf > imgbased-Base-0.$n.conf; done",
            LAYERS - there,
            2000 + LAYERS - there
        ),
    )?;
    let there: u32 = number(vm, "imgbased-helper layer list | wc -l")?;
    ensure!(
        there == LAYERS,
        "there are {there} layers instead of {LAYERS}"
    );
    vm.say("layout and lvs");
    let subjects = ["imgbased-helper layout", "lvm lvs HostVG"].map(Subject::reader);
    let [ours, lvs] = times(vm, CLOSE_RUNS, &subjects)?;
    let processes = lvm_processes(vm, "imgbased-helper layout")?;
    Ok(vec![
        Row {
            what: "layout, 500 layers",
            unit: Unit::Seconds,
            measured: ours,
            other: Some(("lvs", lvs)),
            limit: Limit::AtMost(1.3),
        },
        processes_row("layout, 500 layers: lvm processes", processes, 1.0),
    ])
}

fn processes_row(what: &'static str, count: f64, limit: f64) -> Row {
    Row {
        what,
        unit: Unit::Processes,
        measured: Samples::one(count),
        other: None,
        limit: Limit::AtMost(limit),
    }
}

/// How often lvm is executed by `command` and what it starts, under any of its names.
fn lvm_processes(vm: &mut Vm, command: &str) -> Result<f64> {
    let trace = "strace --follow-forks --status=successful --trace=execve --signal=none --output=/run/trace";
    shell(vm, &format!("{trace} {command}"))?;
    number(
        vm,
        "grep -cE 'execve\\(\"[^\"]*/(lvm|(lv|vg|pv)[a-z]+)\"' /run/trace",
    )
}

/// What was written to the pool's data since the machine was started, in bytes.
fn written_to_pool(vm: &mut Vm) -> Result<f64> {
    let sectors: f64 = number(
        vm,
        "sync; read -ra stat < /sys/block/$(basename $(realpath /dev/mapper/HostVG-ImagePool_tdata))/stat; \
         echo ${stat[6]}",
    )?;
    Ok(sectors * 512.0)
}
