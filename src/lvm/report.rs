//! Reads lvm2's JSON reports.

use std::borrow::Cow;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::model::layout::{Group, Role, Volume};
use crate::model::name::VgName;
use crate::model::percent::Percent;

/// `--reportformat json`: every value is a string, newer versions add a `log` beside `report`.
#[derive(Deserialize)]
struct Document<'a> {
    #[serde(borrow)]
    report: Vec<Section<'a>>,
}

#[derive(Deserialize)]
struct Section<'a> {
    #[serde(borrow)]
    vg: Vec<Row<'a>>,
}

/// Columns of volumes are missing for a group without any.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Row<'a> {
    vg_name: &'a str,
    vg_uuid: &'a str,
    vg_tags: &'a str,
    vg_size: &'a str,
    vg_free: &'a str,
    vg_missing_pv_count: &'a str,
    lv_name: &'a str,
    lv_tags: &'a str,
    lv_size: &'a str,
    lv_layout: &'a str,
    lv_active: &'a str,
    lv_permissions: &'a str,
    lv_skip_activation: &'a str,
    /// The name of a file, so it can have any character.
    lv_profile: Cow<'a, str>,
    data_percent: &'a str,
    metadata_percent: &'a str,
    lv_metadata_size: &'a str,
    chunk_size: &'a str,
    seg_monitor: &'a str,
}

/// Reads a report of `vgs` with the columns of [`Row`]: the group `vg`, or nothing if the report
/// has no line for it. Refuses one that is damaged or has two groups of that name.
pub fn parse(json: &str, vg: &VgName) -> Result<Option<Group>> {
    let document: Document = serde_json::from_str(json).context("unexpected report from lvm2")?;
    let rows: Vec<Row> = document
        .report
        .into_iter()
        .flat_map(|section| section.vg)
        .filter(|row| row.vg_name == vg.as_str())
        .collect();
    let Some(first) = rows.first() else {
        return Ok(None);
    };
    if rows.iter().any(|row| row.vg_uuid != first.vg_uuid) {
        bail!("there are two volume groups with the name {vg}: rename one with vgrename(8)");
    }
    let mut group = Group {
        name: vg.clone(),
        tags: tags(first.vg_tags),
        size: number("vg_size", first.vg_size)?,
        free: number("vg_free", first.vg_free)?,
        missing_pvs: number("vg_missing_pv_count", first.vg_missing_pv_count)?,
        volumes: Vec::new(),
    };
    for row in rows.iter().filter(|row| !row.lv_name.is_empty()) {
        // A volume has a line for each of its segments, one after the other.
        if group.volumes.last().is_none_or(|v| v.name != row.lv_name) {
            group.volumes.push(volume(row)?);
        }
    }
    Ok(Some(group))
}

fn volume(row: &Row) -> Result<Volume> {
    let tags = tags(row.lv_tags);
    let role = Role::from_tags(&tags);
    // Anyone can put a tag on anything; only a thin pool can be the pool.
    let is_pool = row.lv_layout.split(',').any(|l| l == "pool");
    let role = match role {
        Role::Pool if !is_pool => Role::Foreign,
        role => role,
    };
    Ok(Volume {
        name: row.lv_name.to_owned(),
        role,
        tags,
        size: number("lv_size", row.lv_size)?,
        active: row.lv_active == "active",
        // An inactive thin volume is reported as unknown.
        writable: row.lv_permissions != "read-only",
        skips_activation: !row.lv_skip_activation.is_empty(),
        monitored: row.seg_monitor == "monitored",
        profile: row.lv_profile.clone().into_owned(),
        metadata_size: number("lv_metadata_size", row.lv_metadata_size).unwrap_or(0),
        chunk_size: number("chunk_size", row.chunk_size).unwrap_or(0),
        data_percent: percent("data_percent", row.data_percent)?,
        metadata_percent: percent("metadata_percent", row.metadata_percent)?,
    })
}

fn tags(list: &str) -> Vec<String> {
    let tags = list.split(',').filter(|tag| !tag.is_empty());
    tags.map(str::to_owned).collect()
}

fn number(column: &str, value: &str) -> Result<u64> {
    value.parse().with_context(|| {
        format!("lvm2 reports {column} as {value:?}, a number of bytes was expected")
    })
}

/// Inactive volumes have no percentage.
fn percent(column: &str, value: &str) -> Result<Option<Percent>> {
    if value.is_empty() {
        return Ok(None);
    }
    let percent = value.parse();
    percent
        .map(Some)
        .with_context(|| format!("unexpected {column} from lvm2"))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Recorded from lvm2 2.03.31.
    const HOST: &str = include_str!("../../tests/lvm-reports/host.json");
    const MISSING_DISK: &str = include_str!("../../tests/lvm-reports/missing-disk.json");
    const EMPTY_GROUP: &str = include_str!("../../tests/lvm-reports/empty-group.json");
    const NO_SUCH_GROUP: &str = include_str!("../../tests/lvm-reports/no-such-group.json");

    fn vg(name: &str) -> VgName {
        name.parse().unwrap()
    }

    #[test]
    fn a_host_with_two_layers_a_foreign_volume_and_a_half_made_layer() {
        let group = parse(HOST, &vg("HostVG")).unwrap().unwrap();
        assert_eq!(
            (group.size, group.free, group.missing_pvs),
            (8_048_869_376, 796_917_760, 0)
        );
        assert_eq!(group.tags, ["imgbased:vg"]);
        let roles: Vec<(&str, Role, bool)> = group
            .volumes
            .iter()
            .map(|v| (v.name.as_str(), v.role, v.active))
            .collect();
        assert_eq!(
            roles,
            [
                ("ImagePool", Role::Pool, true),
                ("Config", Role::Volume, true),
                ("Base-0", Role::Base, false),
                ("Base-0.1", Role::Layer, true),
                ("Base-0.2", Role::Layer, false),
                ("Base-1", Role::Base, false),
                ("data", Role::Foreign, true),
                ("Base-0.3", Role::Incomplete, false),
            ]
        );
        let pool = group.pool().unwrap();
        assert_eq!(
            (pool.size, pool.data_percent, pool.metadata_percent),
            (7_226_785_792, "5.13".parse().ok(), "14.01".parse().ok())
        );
        assert_eq!(
            (
                pool.metadata_size,
                pool.chunk_size,
                pool.monitored,
                pool.profile.as_str()
            ),
            (8 << 20, 64 << 10, true, "imgbased")
        );
        assert_eq!(group.bases()[0].layers.len(), 2);
        let base = group.volume("Base-1").unwrap();
        assert!(!base.writable && base.skips_activation);
        assert!(base.digest().unwrap().starts_with("4ddc520c235cc104"));
        assert!(!group.volume("Config").unwrap().skips_activation);
    }

    #[test]
    fn a_group_that_is_not_there() {
        assert_eq!(parse(NO_SUCH_GROUP, &vg("HostVG")).unwrap(), None);
        assert_eq!(parse(HOST, &vg("Other")).unwrap(), None);
    }

    #[test]
    fn a_missing_disk_is_counted_and_the_log_of_newer_versions_is_passed_over() {
        assert!(MISSING_DISK.contains("\"log_type\":\"warn\""));
        let group = parse(MISSING_DISK, &vg("Two")).unwrap().unwrap();
        assert_eq!(group.missing_pvs, 1);
    }

    #[test]
    fn a_volume_with_two_segments_is_one_volume() {
        assert_eq!(MISSING_DISK.matches("\"lv_name\":\"both\"").count(), 2);
        let group = parse(MISSING_DISK, &vg("Two")).unwrap().unwrap();
        assert_eq!(group.volumes.len(), 1);
    }

    #[test]
    fn a_group_without_volumes() {
        let group = parse(EMPTY_GROUP, &vg("Empty")).unwrap().unwrap();
        assert_eq!((group.size, group.volumes.len()), (125_829_120, 0));
    }

    #[test]
    fn two_groups_with_one_name_are_refused() {
        let twice = HOST.replacen("\"vg_uuid\":\"", "\"vg_uuid\":\"x", 1);
        let error = parse(&twice, &vg("HostVG")).unwrap_err().to_string();
        assert!(
            error.contains("two volume groups with the name HostVG"),
            "{error}"
        );
    }

    #[test]
    fn a_pool_tag_on_something_else_makes_no_pool() {
        let forged = HOST.replacen("\"lv_tags\":\"\"", "\"lv_tags\":\"imgbased:pool\"", 1);
        let group = parse(&forged, &vg("HostVG")).unwrap().unwrap();
        assert_eq!(group.volume("data").unwrap().role, Role::Foreign);
    }

    #[test]
    fn what_is_not_a_report_is_refused() {
        let cut = &HOST[..HOST.len() / 2];
        let other_units = HOST.replace("8048869376", "7.50g");
        let no_column = HOST.replace("\"vg_free\"", "\"vg_used\"");
        for text in ["", "{}", "[]", "null", cut, &other_units, &no_column] {
            assert!(parse(text, &vg("HostVG")).is_err(), "{text:?}");
        }
    }
}
