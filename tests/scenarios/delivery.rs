//! Images from a web server that runs in the machine itself: the newest of a signed list is taken.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::claims::{has_come_up, has_root, is_clean, is_refused, json, restart};
use crate::registry::with_registry;
use crate::vm::guest::script;
use crate::vm::{Host, Loader, Vm};

/// For making, fetching and copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(1200);

scenarios![;
    long:
    the_newest_image_of_a_server_is_fetched_and_tried,
    a_killed_download_leaves_the_spool_only_and_what_is_here_needs_no_server,
    an_image_without_room_goes_straight_into_its_volume,
    of_an_image_in_layers_only_what_is_new_is_fetched,
];

const ADDRESS: &str = "http://127.0.0.1:8080/images/myhost-10.raw.zst";

fn serving(name: &str) -> Result<Vm> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, name)?;
    vm.ok(&script("make-next")?)?;
    vm.ok_for(&script("serve-images")?, SLOW)?;
    Ok(vm)
}

/// What the server was asked for since it was asked last.
fn requests(vm: &mut Vm) -> Result<Vec<String>> {
    // The name of the file and the status.
    let log = vm.ok("awk '{ print $7, $9 }' /run/nginx.log; : >/run/nginx.log")?;
    Ok(log.lines().map(str::to_owned).collect())
}

fn the_newest_image_of_a_server_is_fetched_and_tried() -> Result<()> {
    let mut vm = serving("delivery")?;
    let (list, signature) = ("/images/SHA256SUMS", "/images/SHA256SUMS.gpg");

    let told = vm.run_for("imgbased-helper update --check", SLOW)?;
    ensure!(
        told.status == 3 && told.text.contains("version 10; is new to this host"),
        "{told:?}"
    );
    let image = "/images/myhost-10.raw.zst";
    assert_eq!(
        requests(&mut vm)?,
        [
            format!("{list} 200"),
            format!("{signature} 200"),
            // Of which the first byte, for its length.
            format!("{image} 206")
        ]
    );
    let told = vm.run_for("imgbased-helper --json update --check", SLOW)?;
    let told: serde_json::Value = serde_json::from_str(&told.text)?;
    assert_eq!(
        (&told["state"], &told["image"]["version"]),
        (&"newer".into(), &"10".into())
    );
    assert_eq!(told["image"]["signature"]["kind"], "gpg");
    let size = vm.ok(&format!("stat -c %s /run/server{image}"))?;
    assert_eq!(told["image"]["size"].to_string(), size);
    assert_eq!(told["needs"]["download"].to_string(), size);
    for free in ["spool_free", "pool_free"] {
        ensure!(told["needs"][free].as_u64() > Some(0), "{told}");
    }
    // Nothing has changed.
    assert_eq!(requests(&mut vm)?, [format!("{list} 304")]);

    // Half of it comes, as of a command that was killed.
    let said = vm.ok_for(
        "digest=$(sha256sum </run/server/images/myhost-10.raw.zst | cut -d ' ' -f 1) && \
         head -c 20M /run/server/images/myhost-10.raw.zst >/var/cache/imgbased/$digest.part && \
         imgbased-helper update --download-only 2>&1 && ls /var/cache/imgbased",
        SLOW,
    )?;
    ensure!(
        said.contains(&format!("{ADDRESS} is here")) && said.contains(".image"),
        "{said}"
    );
    assert_eq!(
        requests(&mut vm)?,
        [format!("{list} 304"), format!("{image} 206")]
    );

    let said = vm.ok_for(
        "imgbased-helper update --progress-fd 3 3>/run/progress",
        SLOW,
    )?;
    ensure!(
        said.contains(&format!(
            "Base-1.1 is a layer of Base-1, which holds {ADDRESS}"
        )),
        "{said}"
    );
    assert_eq!(requests(&mut vm)?, [format!("{list} 304")]);
    vm.ok("grep -q '\"stage\":\"Base-1\"' /run/progress")?;
    assert_eq!(
        vm.ok("ls /var/cache/imgbased | grep -c -e image -e part || true")?,
        "0"
    );
    vm.ok("lvm vgs --noheadings -o vg_tags HostVG | grep -q 'imgbased:newest=[0-9a-f]*:10'")?;
    let said = vm.ok_for("imgbased-helper update", SLOW)?;
    ensure!(said.contains("waits for a restart already"), "{said}");
    vm.ok("systemctl is-active imgbased-update-check.timer")?;
    vm.ok("! systemctl is-enabled imgbased-update-apply.timer")?;
    vm.ok("systemctl start imgbased-update-check.service")?;

    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    vm.ok("grep -q IMAGE_VERSION=2 /etc/os-release")?;
    assert_eq!(json(&mut vm, "status")?["default"], "Base-1.1");
    // What the host trusts has come along.
    vm.ok("test -s /etc/imgbased/keys.d/tester.gpg && test -s /etc/imgbased/imgbased.conf")?;
    is_clean(&mut vm)
}

fn a_killed_download_leaves_the_spool_only_and_what_is_here_needs_no_server() -> Result<()> {
    let mut vm = serving("delivery-killed")?;
    let spool = "ls -A /var/cache/imgbased | sed 's/.*[.]//' | sort | paste -s -d ' '";
    // A server that takes its time, and a command that is killed meanwhile.
    vm.ok(
        "sed -i 's/root .*/&\\n limit_rate 2m;/' /run/nginx.conf && nginx -c /run/nginx.conf -s reload && sleep 1",
    )?;
    vm.ok_for(
        "(imgbased-helper update >/run/said 2>&1 & echo $! >/run/pid) && \
         until find /var/cache/imgbased -name '*.part' -size +3M | grep -q .; do sleep 0.2; done && \
         kill -9 $(cat /run/pid)",
        SLOW,
    )?;
    assert_eq!(vm.ok(spool)?, "files json list part");
    assert_eq!(vm.ok("imgbased-helper base list")?, "Base-0");
    is_clean(&mut vm)?;
    vm.ok("imgbased-helper gc --keep 9 --yes")?;
    assert_eq!(vm.ok(spool)?, "");
    is_refused(
        &mut vm,
        "update --from-downloaded",
        "SHA256SUMS is not here",
    )?;

    vm.ok("sed -i /limit_rate/d /run/nginx.conf && nginx -c /run/nginx.conf -s reload && sleep 1")?;
    vm.run_for("imgbased-helper update --check", SLOW)?;
    is_refused(
        &mut vm,
        "update --from-downloaded",
        "myhost-10.raw.zst is not here",
    )?;
    vm.ok_for("imgbased-helper update --download-only", SLOW)?;
    assert_eq!(vm.ok(spool)?, "fetched files image list");
    vm.ok("nginx -c /run/nginx.conf -s stop && sleep 1")?;
    let refused = vm.run_for("imgbased-helper update --check", SLOW)?;
    ensure!(
        refused.status == 1
            && refused
                .text
                .contains("cannot fetch http://127.0.0.1:8080/images/SHA256SUMS"),
        "{refused:?}"
    );
    let told = vm.run_for("imgbased-helper update --check --from-downloaded", SLOW)?;
    ensure!(
        told.status == 3 && told.text.contains("Fetch  nothing, it is here"),
        "{told:?}"
    );
    let said = vm.ok_for("imgbased-helper update --from-downloaded", SLOW)?;
    ensure!(said.contains("Base-1.1 is a layer of Base-1"), "{said}");
    // A base is made of it, so it is kept no longer.
    assert_eq!(vm.ok(spool)?, "fetched files list");
    vm.ok("imgbased-helper gc --keep 9 --yes")?;
    assert_eq!(vm.ok(spool)?, "");
    is_clean(&mut vm)
}

fn an_image_without_room_goes_straight_into_its_volume() -> Result<()> {
    let mut vm = serving("delivery-without-room")?;
    vm.ok("mkdir -p /var/cache/imgbased && mount -t tmpfs -o size=40m,mode=700 none /var/cache/imgbased")?;
    let said = vm.ok_for(&format!("imgbased-helper base add {ADDRESS} 2>&1"), SLOW)?;
    ensure!(
        said.contains("it goes straight into its volume") && said.ends_with("Base-1"),
        "{said}"
    );
    vm.ok_for(
        "imgbased-helper base verify Base-1 | grep -q unchanged",
        SLOW,
    )?;

    // Another file than the list says: what was copied of it is gone again.
    vm.ok("cd /run/server/images && printf x >>myhost-10.raw.zst && cd -")?;
    let refused = vm.run_for(&format!("imgbased-helper base add {ADDRESS}"), SLOW)?;
    ensure!(
        refused.status == 1 && refused.text.contains("has the SHA-256"),
        "{refused:?}"
    );
    assert_eq!(vm.ok("imgbased-helper base list | wc -l")?, "2");
    // Another list than was signed.
    vm.ok("cd /run/server/images && sha256sum myhost-*.zst >SHA256SUMS && cd -")?;
    is_refused(&mut vm, "update", "is not of this list")?;
    // Its key is gone.
    vm.ok("rm /etc/imgbased/keys.d/tester.gpg")?;
    is_refused(&mut vm, "update", "has no keys")?;
    vm.ok("umount /var/cache/imgbased")?;
    is_clean(&mut vm)
}

/// How much of a volume was read since it is active, in bytes.
fn read_of(vm: &mut Vm, volume: &str) -> Result<u64> {
    let read = vm.ok(&format!(
        "awk '{{ print $3 * 512 }}' /sys/block/$(basename $(readlink -f /dev/HostVG/{volume}))/stat"
    ))?;
    Ok(read.parse()?)
}

/// How much a volume takes of the pool, or the pool has in use, in bytes.
fn mapped(vm: &mut Vm, volume: &str) -> Result<u64> {
    let mapped = vm.ok(&format!(
        "lvm lvs --noheadings --nosuffix --units b -o lv_size,data_percent HostVG/{volume} | \
         awk '{{ printf \"%.0f\", $1 * $2 / 100 }}'"
    ))?;
    Ok(mapped.parse()?)
}

/// How many bytes the server has sent since it was asked last.
fn sent(vm: &mut Vm) -> Result<u64> {
    let sum = vm.ok("awk '{ n += $2 } END { print n + 0 }' /run/nginx.log; : >/run/nginx.log")?;
    Ok(sum.parse()?)
}

fn of_an_image_in_layers_only_what_is_new_is_fetched() -> Result<()> {
    let mut vm = with_registry("delivery-in-layers")?;
    vm.ok(&script("make-next")?)?;
    vm.ok_for("imgbased-helper base verify --record Base-0", SLOW)?;
    vm.ok_for(&script("serve-layers")?, SLOW)?;
    let layer = vm.ok("stat -c %s /run/server/myhost/blobs/sha256/* | sort -n | tail -n 1")?;
    let layer: u64 = layer.parse()?;

    // What is read of an active volume is counted.
    vm.ok("lvchange --activate y --ignoreactivationskip HostVG/Base-0")?;
    let (base, pool) = (mapped(&mut vm, "Base-0")?, mapped(&mut vm, "ImagePool")?);
    let read = read_of(&mut vm, "Base-0")?;
    let add = "imgbased-helper base add";
    let said = vm.ok_for(&format!("{add} http://127.0.0.1:8080/myhost/ 2>&1"), SLOW)?;
    ensure!(
        said.ends_with("Base-1") && !said.contains("as a whole"),
        "{said}"
    );
    let fetched = sent(&mut vm)?;
    ensure!(fetched * 20 <= layer, "{fetched} of {layer} bytes");
    let now = read_of(&mut vm, "Base-0")?;
    ensure!((now - read) * 10 <= base, "read {read}, {now} of {base}");
    let now = mapped(&mut vm, "ImagePool")?;
    ensure!(
        now.saturating_sub(pool) * 10 <= base,
        "in use {pool}, {now}; {base}"
    );
    vm.ok("lvchange --activate n HostVG/Base-0")?;
    vm.ok("test -z \"$(ls /var/cache/imgbased | grep -v -e list -e fetched -e files)\"")?;

    // A server without parts.
    let said = vm.ok_for(&format!("{add} http://127.0.0.1:8081/myhost/ 2>&1"), SLOW)?;
    ensure!(
        said.ends_with("Base-2") && said.contains("as a whole: its server has no parts"),
        "{said}"
    );
    ensure!(sent(&mut vm)? >= layer);
    vm.ok_for("imgbased-helper diff --exit-code Base-1 Base-2", SLOW)?;
    vm.ok_for("imgbased-helper base verify Base-1 Base-2", SLOW)?;

    let said = vm.ok_for("imgbased-helper update 2>&1", SLOW)?;
    ensure!(
        said.contains("which holds http://127.0.0.1:8080/myhost/index.json"),
        "{said}"
    );
    ensure!(sent(&mut vm)? * 100 <= layer);

    // What the server has is not what was signed.
    vm.ok("printf x >>/run/server/myhost/index.json")?;
    let refused = vm.run_for(&format!("{add} http://127.0.0.1:8080/myhost/"), SLOW)?;
    ensure!(
        refused.status == 1 && refused.text.contains("has the SHA-256"),
        "{refused:?}"
    );
    is_clean(&mut vm)
}
