//! From the kernel command line to the mounted root: wait for the disks, activate, check, mount; and the
//! fallback.

use anyhow::{Context, Result, ensure};
use nix::sys::utsname::uname;

use super::clock::Clock;
use super::cmdline::{self, Request};
use super::group::find;
use super::sysroot::{self, Filesystem};
use super::{volumes, wait};
use crate::lvm::disk::Metadata;
use crate::lvm::{Lvm, is_failed_check};
use crate::model::boot_record::BootRecord;
use crate::model::layout::Role;
use crate::model::name::LvName;
use crate::model::volume::Mount;
use crate::sys::run;

/// Mounts what the kernel command line asks for, or its fallback; nothing if it names no layer.
pub fn mount_requested(cmdline: &[u8]) -> Result<()> {
    let Some(request) = cmdline::parse(cmdline)? else {
        return Ok(());
    };
    for remark in &request.remarks {
        log::warn!("{remark}");
    }
    // systemd starts this again when the boot goes on.
    if hand_over_mounted(&request)? {
        return Ok(());
    }
    ensure!(
        !sysroot::is_taken(),
        "another root is mounted at /sysroot; unmount it, or leave the shell to boot it"
    );
    let Err(error) = mount(&request, None) else {
        return Ok(());
    };
    sysroot::unmount();
    let Some(fallback) = request.fallback.clone() else {
        return Err(error);
    };
    log::error!("{error:#}");
    log::warn!("trying the fallback {fallback}");
    let second = Request {
        layer: fallback,
        ..request.clone()
    };
    mount(&second, Some(&request))
        .inspect_err(|_| sysroot::unmount())
        .with_context(|| format!("the fallback {} failed too", second.layer))
}

/// Leaves word for the running system of a layer that is mounted already: by an earlier run, which has done so, or by a
/// person in the emergency shell, also of the fallback. Returns whether one is. What of that fails is told, and keeps no
/// layer from being booted.
pub fn hand_over_mounted(request: &Request) -> Result<bool> {
    for layer in [&request.layer].into_iter().chain(&request.fallback) {
        let dm_name = request.vg.dm_name(layer)?;
        if !sysroot::is_mounted(&dm_name) {
            continue;
        }
        log::info!("{dm_name} is mounted already");
        let told: Option<BootRecord> = run::read_json(run::BOOT_RECORD);
        if told.is_none_or(|told| told.layer != layer.as_str()) {
            let mounted = Request {
                layer: layer.clone(),
                ..request.clone()
            };
            let other = (*layer != request.layer).then_some(request);
            if let Err(error) = tell_of_mounted(&mounted, other) {
                log::warn!("no volume will be mounted beside {layer}: {error:#}");
            }
        }
        return Ok(true);
    }
    Ok(false)
}

/// Activates the volumes of a layer that a person has mounted, as far as its group is known now.
fn tell_of_mounted(request: &Request, instead_of: Option<&Request>) -> Result<()> {
    let Request { vg, layer, .. } = request;
    let group = wait::group_now(request)?;
    let role = find(request, &group)?;
    let lvm = Lvm::on_devices(vg.clone(), group.devices);
    let shared = volumes::of(&group.metadata, role);
    let names = volumes::with_layer(layer, &shared);
    if volumes::any_inactive(&lvm, &names)? {
        volumes::activate(&lvm, &names, &lvm.activate_at_boot(&names))?;
    }
    tell(
        request,
        &group.metadata,
        (role, shared),
        instead_of,
        Clock::start(),
    )
}

/// Waits for the disks, activates the layer, checks its filesystem and mounts it, if need be
/// `instead_of` another one.
fn mount(request: &Request, instead_of: Option<&Request>) -> Result<()> {
    let mut clock = Clock::start();
    let Request { vg, layer, .. } = request;
    let dm_name = vg.dm_name(layer)?;
    let group = wait::for_group(request)?;
    let role = find(request, &group)?;
    clock.end("wait");
    let lvm = Lvm::on_devices(vg.clone(), group.devices);
    let device = lvm.device(layer)?;
    let shared = volumes::of(&group.metadata, role);
    activate(&lvm, layer, &shared, &group.metadata).map_err(|error| {
        let explained = lvm.explain_activation(layer, &format!("{error:#}"));
        error.context(explained.unwrap_or_else(|| format!("cannot activate {dm_name}")))
    })?;
    // lvm2 calls it a success when it leaves out a volume.
    ensure!(device.exists(), "lvm2 did not activate {dm_name}");
    volumes::check_own(
        &lvm,
        &volumes::with_layer(layer, &shared),
        &group.metadata.uuid,
    )?;
    clock.end("activate");
    let filesystem = Filesystem::find(request, &device, &dm_name)?;
    if role == Role::Base {
        filesystem.mount_base()?;
    } else {
        filesystem.check()?;
        clock.end("check");
        filesystem.mount_layer()?;
    }
    clock.end("mount");
    if instead_of.is_some() {
        let kernel = uname().context("cannot ask for the kernel's version")?;
        let release = kernel.release().to_string_lossy();
        ensure!(
            sysroot::has_modules_of(&release),
            "{layer} has no modules for the kernel {release}"
        );
    }
    tell(request, &group.metadata, (role, shared), instead_of, clock)
}

/// Leaves word of the layer and its volumes for the running system.
fn tell(
    request: &Request,
    metadata: &Metadata,
    (role, shared): (Role, Vec<Mount>),
    instead_of: Option<&Request>,
    clock: Clock,
) -> Result<()> {
    let Request { vg, layer, .. } = request;
    let dm_name = vg.dm_name(layer)?;
    volumes::hand_over(vg, role, shared);
    let times = clock.times();
    let record = BootRecord {
        version: 1,
        vg: vg.to_string(),
        vgid: Some(metadata.uuid.clone()),
        layer: layer.to_string(),
        role: if role == Role::Base { "base" } else { "layer" }.to_owned(),
        device: format!("/dev/mapper/{dm_name}"),
        instead_of: instead_of.map(|first| first.layer.to_string()),
        milliseconds: times.phases.iter().map(|phase| phase.milliseconds).sum(),
        own_microseconds: times.own_microseconds,
        phases: times.phases,
    };
    if let Err(error) = run::write_json(run::BOOT_RECORD, &record) {
        log::warn!("{error:#}");
    }
    log::info!("{dm_name} mounted in {}", record.times());
    Ok(())
}

fn activate(lvm: &Lvm, layer: &LvName, shared: &[Mount], metadata: &Metadata) -> Result<()> {
    let names = volumes::with_layer(layer, shared);
    // A person can have activated the layer alone.
    if volumes::any_inactive(lvm, &names)?
        && let Err(error) = volumes::activate(lvm, &names, &lvm.activate_at_boot(&names))
    {
        let text = format!("{error:#}");
        if !is_failed_check(&text) {
            return Err(error);
        }
        log::warn!("{text}");
        return activate_checked(lvm, &names);
    }
    let pools = metadata.volumes.iter();
    let mut pools = pools.filter(|(_, role)| *role == Role::Pool);
    let needs_check = |(pool, _): &(String, Role)| {
        lvm.needs_check(pool).unwrap_or_else(|error| {
            // The layer is active, so it can be mounted.
            log::warn!("nobody tells whether {pool} needs a check: {error:#}");
            false
        })
    };
    if pools.any(needs_check) {
        // As long as one is active, the pool is.
        for name in &names {
            lvm.deactivate(name).run()?;
        }
        activate_checked(lvm, &names)?;
    }
    Ok(())
}

fn activate_checked(lvm: &Lvm, names: &[LvName]) -> Result<()> {
    log::warn!(
        "checking the whole thin pool of {}, which can take long",
        lvm.vg()
    );
    volumes::activate(lvm, names, &lvm.activate_checked_at_boot(names))
}
