//! Images in layers, from a registry that runs in the machine itself, and from directories that are made to harm.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::claims::{has_come_up, has_root, is_clean, restart};
use crate::vm::guest::script;
use crate::vm::{Host, Loader, Vm, registry_programs};

/// For packing, fetching and copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(1800);

scenarios![;
    long:
    an_image_of_a_registry_is_fetched_by_layers_and_tried,
    layers_that_are_made_to_harm_leave_nothing,
    of_a_layer_in_a_registry_only_what_no_base_has_is_fetched,
];

const NAME: &str = "docker://127.0.0.1:5000/host";

/// A host that has skopeo and a registry.
pub fn with_registry(name: &str) -> Result<Vm> {
    let saved = Host::saved(Loader::Grub)?;
    let disk = saved.disk(name)?;
    disk.fill("small", &registry_programs()?)?;
    let mut vm = saved.go_on(&disk, true)?;
    vm.ok(&script("add-registry")?)?;
    Ok(vm)
}

fn serving(name: &str) -> Result<Vm> {
    let mut vm = with_registry(name)?;
    vm.ok(&script("make-next")?)?;
    vm.ok(&script("start-registry")?)?;
    vm.ok_for(&script("serve-registry")?, SLOW)?;
    Ok(vm)
}

/// How many bytes were written to the disks since the machine has started.
fn written(vm: &mut Vm) -> Result<u64> {
    vm.ok("sync")?;
    let sectors =
        vm.ok("awk '$3 ~ /^vd[a-z]$/ { sum += $10 } END { print sum }' /proc/diskstats")?;
    Ok(sectors.parse::<u64>()? * 512)
}

/// What the registry has sent since it was asked last: how many manifests, and the bytes of each blob, the largest
/// first.
fn sent(vm: &mut Vm) -> Result<(usize, Vec<u64>)> {
    let log = vm.ok("awk '$6 == \"\\\"GET\" && $9 < 300 { print $7, $10 }' /run/registry.log; : >/run/registry.log")?;
    let mut blobs: Vec<u64> = Vec::new();
    let mut manifests = 0;
    for line in log.lines() {
        let (path, bytes) = line.split_once(' ').unwrap_or_default();
        if path.contains("/blobs/") {
            blobs.push(bytes.parse()?);
        }
        manifests += usize::from(path.contains("/manifests/"));
    }
    blobs.sort_unstable_by(|a, b| b.cmp(a));
    Ok((manifests, blobs))
}

fn an_image_of_a_registry_is_fetched_by_layers_and_tried() -> Result<()> {
    let mut vm = serving("registry")?;
    let told = vm.run_for(&format!("imgbased-helper update --check {NAME}:one"), SLOW)?;
    ensure!(
        told.status == 3 && told.text.contains("is new to this host"),
        "{told:?}"
    );
    assert_eq!(sent(&mut vm)?, (1, Vec::new()));

    let said = vm.ok_for(&format!("imgbased-helper update {NAME}:one 2>&1"), SLOW)?;
    ensure!(
        said.contains(&format!(
            "Base-1.1 is a layer of Base-1, which holds {NAME}:one"
        )),
        "{said}"
    );
    let (_, first) = sent(&mut vm)?;
    ensure!(
        first.len() == 3 && first[0] > 10 << 20 && first[1] < 10 << 10,
        "two layers and the configuration: {first:?}"
    );
    let said = vm.ok_for(&format!("imgbased-helper update {NAME}:one"), SLOW)?;
    ensure!(said.contains("waits for a restart already"), "{said}");
    sent(&mut vm)?;

    // Of the next one only what is new comes, and what no base has is all that is written.
    let before = written(&mut vm)?;
    let digest =
        vm.ok("skopeo inspect --raw oci:/run/server/images/two | sha256sum | cut -d ' ' -f 1")?;
    let said = vm.ok_for(
        &format!("imgbased-helper base add {NAME}@sha256:{digest} 2>&1"),
        SLOW,
    )?;
    ensure!(said.ends_with("Base-2"), "{said}");
    let (_, second) = sent(&mut vm)?;
    ensure!(
        second.iter().sum::<u64>() < 20 << 10,
        "the large layer came again: {second:?}"
    );
    let written = written(&mut vm)? - before;
    let whole: u64 = vm.ok("stat -c %s /run/server/host.tar")?.parse()?;
    ensure!(
        written < whole / 4,
        "{written} bytes were written for {whole}"
    );
    assert_eq!(
        vm.ok("imgbased-helper diff Base-1 Base-2 --path /etc | grep of-layer")?,
        "M .c.... /etc/of-layer"
    );

    // From a web server as an archive it is the same tree.
    vm.ok(
        "printf '%s\\n' 'pid /run/nginx.pid;' 'error_log /run/nginx-error.log;' 'events { }' \
         'http { access_log off; server { listen 127.0.0.1:8080; root /run/server; } }' >/run/nginx.conf && \
         nginx -c /run/nginx.conf",
    )?;
    let said = vm.ok_for(
        "imgbased-helper base add --require-digest $(sha256sum </run/server/host.tar | cut -d ' ' -f 1) \
         http://127.0.0.1:8080/host.tar 2>&1",
        SLOW,
    )?;
    ensure!(said.ends_with("Base-3"), "{said}");
    let differ = vm.ok_for("imgbased-helper diff --verify Base-1 Base-3", SLOW)?;
    assert_eq!(differ, "");
    // So it is by the listing of another base.
    let said = vm.ok_for(&format!("imgbased-helper base add {NAME}:one 2>&1"), SLOW)?;
    ensure!(said.ends_with("Base-4"), "{said}");
    let differ = vm.ok_for("imgbased-helper diff --verify Base-1 Base-4", SLOW)?;
    assert_eq!(differ, "");
    vm.ok("imgbased-helper base remove --yes Base-4 && imgbased-helper base remove --yes Base-3")?;

    // Who has to have signed is in policy.json.
    let refused = vm.run_for(
        &format!(
            "mv /etc/containers/policy.json /run && echo '{{\"default\":[{{\"type\":\"reject\"}}]}}' \
             >/etc/containers/policy.json && imgbased-helper base add {NAME}:one; status=$?; \
             mv /run/policy.json /etc/containers; (exit $status)"
        ),
        SLOW,
    )?;
    ensure!(
        refused.status == 1 && refused.text.contains("rejected by policy"),
        "{refused:?}"
    );
    let refused = vm.run(&format!("imgbased-helper update --check {NAME}:none"))?;
    ensure!(
        refused.status == 1 && refused.text.contains("manifest unknown"),
        "{refused:?}"
    );

    // What stays of it is in the spool, which gc removes.
    vm.ok("test -d /var/cache/imgbased/layers")?;
    vm.ok("imgbased-helper gc --keep 9 --yes && [ ! -e /var/cache/imgbased/layers ]")?;

    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    assert_eq!(
        vm.ok("cat /etc/of-layer; ls /srv /srv/emptied")?,
        "one\n/srv:\nemptied\n\n/srv/emptied:\nnew"
    );
    is_clean(&mut vm)
}

fn layers_that_are_made_to_harm_leave_nothing() -> Result<()> {
    let mut vm = serving("registry-harm")?;
    let used = "lvm lvs --noheadings -o lv_name HostVG | sort; [ ! -e /var/cache/imgbased ] || ls -R /var/cache/imgbased";
    let before = vm.ok(used)?;
    for (name, why) in [
        ("up", "says that something is gone which is no name"),
        ("damaged", "it has the SHA-256"),
        ("bomb", "the thin pool has room for"),
    ] {
        let refused = vm.run_for(
            &format!("imgbased-helper base add oci:/run/server/images/{name}"),
            SLOW,
        )?;
        ensure!(
            refused.status == 1 && refused.text.contains(why),
            "{name}: {refused:?}"
        );
        assert_eq!(vm.ok(used)?, before, "{name}");
    }
    is_clean(&mut vm)
}

fn of_a_layer_in_a_registry_only_what_no_base_has_is_fetched() -> Result<()> {
    let mut vm = with_registry("registry-chunked")?;
    vm.ok(&script("make-next")?)?;
    vm.ok_for("imgbased-helper base verify --record Base-0", SLOW)?;
    vm.ok(&script("start-registry")?)?;
    vm.ok_for(&script("serve-chunked")?, SLOW)?;
    let layer = vm.ok("stat -c %s /run/server/chunked/blobs/sha256/* | sort -n | tail -n 1")?;
    let layer: u64 = layer.parse()?;
    sent(&mut vm)?;

    let add = format!("imgbased-helper base add {NAME}:chunked 2>&1");
    let said = vm.ok_for(&add, SLOW)?;
    ensure!(
        said.ends_with("Base-1") && !said.contains("as a whole"),
        "{said}"
    );
    let (_, blobs) = sent(&mut vm)?;
    let fetched: u64 = blobs.iter().sum();
    ensure!(
        fetched > 0 && fetched * 20 <= layer,
        "{fetched} of {layer} bytes: {blobs:?}"
    );
    vm.ok("test -z \"$(ls /var/cache/imgbased | grep -v -e list -e fetched -e files)\"")?;

    // Where anything has to be signed, skopeo has to see all of it.
    vm.ok(
        "cp /etc/containers/policy.json /run && echo '{\"default\":[{\"type\":\"insecureAcceptAnything\"}],\
         \"transports\":{\"docker\":{\"example.org/other\":[{\"type\":\"reject\"}]}}}' >/etc/containers/policy.json",
    )?;
    let said = vm.ok_for(&add, SLOW)?;
    ensure!(
        said.ends_with("Base-2") && said.contains("as a whole: policy.json asks"),
        "{said}"
    );
    let (_, blobs) = sent(&mut vm)?;
    ensure!(
        blobs.first().is_some_and(|most| *most == layer),
        "{blobs:?}"
    );
    vm.ok_for("imgbased-helper diff --exit-code Base-1 Base-2", SLOW)?;
    vm.ok_for("imgbased-helper base verify Base-1 Base-2", SLOW)?;
    vm.ok("mv /run/policy.json /etc/containers/policy.json")?;

    is_clean(&mut vm)
}
