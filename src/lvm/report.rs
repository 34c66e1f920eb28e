//! Reads lvm2's JSON reports.

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::model::layout::{Group, Role, Volume};
use crate::model::name::VgName;

/// `--reportformat json`: every value is a string, newer versions add a `log` beside `report`.
#[derive(Deserialize)]
struct Document {
    report: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    vg: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    vg_name: String,
    vg_size: String,
    vg_free: String,
    vg_extent_size: String,
    vg_missing_pv_count: String,
    lv_name: String,
    lv_tags: String,
    lv_size: String,
    lv_layout: String,
    lv_permissions: String,
    lv_active: String,
    origin: String,
    data_percent: String,
    metadata_percent: String,
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
    let mut group = Group {
        name: vg.clone(),
        size: number("vg_size", &first.vg_size)?,
        free: number("vg_free", &first.vg_free)?,
        extent_size: number("vg_extent_size", &first.vg_extent_size)?,
        missing_pvs: number("vg_missing_pv_count", &first.vg_missing_pv_count)?,
        volumes: Vec::new(),
    };
    for row in rows.iter().filter(|row| !row.lv_name.is_empty()) {
        if group.volume(&row.lv_name).is_some() {
            bail!("there are two volume groups with the name {vg}: rename one with vgrename(8)");
        }
        group.volumes.push(volume(row)?);
    }
    Ok(Some(group))
}

fn volume(row: &Row) -> Result<Volume> {
    let tags: Vec<String> = row
        .lv_tags
        .split(',')
        .filter(|t| !t.is_empty())
        .map(str::to_owned)
        .collect();
    let role = Role::from_tags(&tags);
    // Anyone can put a tag on anything; only a thin pool can be the pool.
    let is_pool = row.lv_layout.split(',').any(|l| l == "pool");
    let role = match role {
        Role::Pool if !is_pool => Role::Foreign,
        role => role,
    };
    Ok(Volume {
        name: row.lv_name.clone(),
        role,
        tags,
        size: number("lv_size", &row.lv_size)?,
        read_only: row.lv_permissions.starts_with("read-only"),
        active: row.lv_active == "active",
        origin: Some(row.origin.clone()).filter(|o| !o.is_empty()),
        data_percent: percent("data_percent", &row.data_percent)?,
        metadata_percent: percent("metadata_percent", &row.metadata_percent)?,
    })
}

fn number(column: &str, value: &str) -> Result<u64> {
    value.parse().with_context(|| {
        format!("lvm2 reports {column} as {value:?}, a number of bytes was expected")
    })
}

/// Inactive volumes have no percentage.
fn percent(column: &str, value: &str) -> Result<Option<f64>> {
    if value.is_empty() {
        return Ok(None);
    }
    let percent: f64 = value.parse().with_context(|| {
        format!("lvm2 reports {column} as {value:?}, a percentage was expected")
    })?;
    Ok(Some(percent))
}
