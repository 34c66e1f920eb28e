//! Reads the lines of lvm2's reports.

use anyhow::{Context, Result, bail};

use super::SEPARATOR;
use crate::model::layout::{Group, Role, Volume};
use crate::model::name::{VgName, VgUuid};
use crate::model::percent::Percent;
use crate::model::pool::Fault;

/// One line: a volume, or one of its segments, and its group.
struct Row<'a> {
    vg_name: &'a str,
    vg_uuid: &'a str,
    vg_tags: &'a str,
    vg_size: &'a str,
    vg_free: &'a str,
    vg_missing_pv_count: &'a str,
    /// Not in the report of a group without volumes.
    volume: Option<VolumeRow<'a>>,
}

struct VolumeRow<'a> {
    lv_name: &'a str,
    lv_tags: &'a str,
    lv_size: &'a str,
    lv_attr: &'a str,
    data_percent: &'a str,
    metadata_percent: &'a str,
    /// Not in all reports.
    pool: Option<PoolRow<'a>>,
}

struct PoolRow<'a> {
    lv_metadata_size: &'a str,
    chunk_size: &'a str,
    seg_monitor: &'a str,
    transaction_id: &'a str,
    lv_profile: &'a str,
}

impl<'a> Row<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        const COLUMNS: usize = 17;
        let mut fields = line.trim_start().splitn(COLUMNS, SEPARATOR);
        let mut row = Self {
            vg_name: fields.next()?,
            vg_uuid: fields.next()?,
            vg_tags: fields.next()?,
            vg_size: fields.next()?,
            vg_free: fields.next()?,
            vg_missing_pv_count: fields.next()?,
            volume: None,
        };
        if let Some(lv_name) = fields.next() {
            row.volume = Some(VolumeRow {
                lv_name,
                lv_tags: fields.next()?,
                lv_size: fields.next()?,
                lv_attr: fields.next()?,
                data_percent: fields.next()?,
                metadata_percent: fields.next()?,
                pool: match fields.next() {
                    None => None,
                    Some(lv_metadata_size) => Some(PoolRow {
                        lv_metadata_size,
                        chunk_size: fields.next()?,
                        seg_monitor: fields.next()?,
                        transaction_id: fields.next()?,
                        lv_profile: fields.next()?,
                    }),
                },
            });
        }
        Some(row)
    }
}

/// Reads a report of `vgs` with the columns of [`Row`], line by line.
pub struct Reader<'a> {
    vg: &'a VgName,
    uuid: Option<&'a VgUuid>,
    /// Whether there are other groups of that name, which have another UUID.
    has_seen_others: bool,
    /// What was read so far.
    found: Option<Group>,
}

impl<'a> Reader<'a> {
    /// Reads the group with this name and, if it is known, this UUID.
    pub fn new(vg: &'a VgName, uuid: Option<&'a VgUuid>) -> Self {
        Self {
            vg,
            uuid,
            has_seen_others: false,
            found: None,
        }
    }

    /// Takes the next line. Refuses one that is damaged, and a second group of the same name.
    pub fn take(&mut self, line: &str) -> Result<()> {
        let row = Row::parse(line)
            .with_context(|| format!("unexpected line in a report of lvm2: {line:?}"))?;
        if row.vg_name != self.vg.as_str() {
            return Ok(());
        }
        if self.uuid.is_some_and(|uuid| uuid.as_str() != row.vg_uuid) {
            self.has_seen_others = true;
            return Ok(());
        }
        let group = match &mut self.found {
            Some(group) => group,
            None => self.found.insert(empty(&row, self.vg)?),
        };
        if row.vg_uuid != group.uuid {
            bail!(
                "there are two volume groups with the name {}: rename one with vgrename(8)",
                self.vg
            );
        }
        if let Some(row) = row.volume {
            // A volume has a line for each of its segments, one after the other.
            if group.volumes.last().is_none_or(|v| v.name != row.lv_name) {
                group.volumes.push(volume(&row)?);
            }
        }
        Ok(())
    }

    pub fn has_seen_others(&self) -> bool {
        self.has_seen_others
    }

    /// The group, or nothing if the report has no line for it.
    pub fn group(self) -> Option<Group> {
        self.found
    }
}

fn empty(row: &Row, vg: &VgName) -> Result<Group> {
    Ok(Group {
        name: vg.clone(),
        uuid: row.vg_uuid.to_owned(),
        tags: tags(row.vg_tags),
        size: number("vg_size", row.vg_size)?,
        free: number("vg_free", row.vg_free)?,
        missing_pvs: number("vg_missing_pv_count", row.vg_missing_pv_count)?,
        volumes: Vec::new(),
    })
}

fn volume(row: &VolumeRow) -> Result<Volume> {
    // lvs(8), "NOTES": the letters of the attributes, by their places.
    let attributes = row.lv_attr.as_bytes();
    let &[kind, permission, _, _, state, _, _, zero, health, skip] = attributes else {
        bail!("unexpected lv_attr from lvm2: {:?}", row.lv_attr);
    };
    let tags = tags(row.lv_tags);
    // Anyone can put a tag on anything; only a thin pool can be the pool.
    let role = match Role::of(row.lv_name, &tags) {
        Role::Pool if kind != b't' => Role::Foreign,
        role => role,
    };
    let pool = row.pool.as_ref();
    let metadata_percent = percent("metadata_percent", row.metadata_percent)?;
    Ok(Volume {
        name: row.lv_name.to_owned(),
        role,
        tags,
        size: number("lv_size", row.lv_size)?,
        // All others tell of a table or a device.
        active: !matches!(state, b'-' | b'h' | b'X'),
        writable: permission != b'r',
        skips_activation: skip == b'k',
        is_origin: kind == b'o',
        is_merging: kind == b'O',
        zeroes: zero == b'z',
        monitored: pool.is_some_and(|pool| pool.seg_monitor == "monitored"),
        profile: pool.map_or(String::new(), |pool| pool.lv_profile.to_owned()),
        metadata_size: pool
            .and_then(|pool| pool.lv_metadata_size.parse().ok())
            .unwrap_or(0),
        chunk_size: pool
            .and_then(|pool| pool.chunk_size.parse().ok())
            .unwrap_or(0),
        transaction_id: pool.and_then(|pool| pool.transaction_id.parse().ok()),
        data_percent: percent("data_percent", row.data_percent)?,
        metadata_percent,
        fault: match (health, state) {
            _ if kind != b't' => None,
            (b'F', _) => Some(Fault::Failed),
            (_, b'c' | b'C') => Some(Fault::NeedsCheck),
            (b'M', _) => Some(Fault::of_read_only(metadata_percent)),
            (b'D', _) => Some(Fault::NoSpace),
            _ => None,
        },
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

    // Recorded from lvm2 2.03.31, with all columns.
    const HOST: &str = include_str!("../../tests/lvm-reports/host.txt");
    const MISSING_DISK: &str = include_str!("../../tests/lvm-reports/missing-disk.txt");
    const EMPTY_GROUP: &str = include_str!("../../tests/lvm-reports/empty-group.txt");

    fn vg(name: &str) -> VgName {
        name.parse().unwrap()
    }

    fn parse(report: &str, vg: &VgName) -> Result<Option<Group>> {
        let mut reader = Reader::new(vg, None);
        report.lines().try_for_each(|line| reader.take(line))?;
        Ok(reader.group())
    }

    #[test]
    fn a_host_with_two_layers_a_foreign_volume_and_a_half_made_layer() {
        let group = parse(HOST, &vg("HostVG")).unwrap().unwrap();
        assert_eq!(
            (group.size, group.free, group.missing_pvs),
            (8_048_869_376, 801_112_064, 0)
        );
        assert_eq!(group.tags, ["imgbased:vg"]);
        assert!(group.uuid.parse::<VgUuid>().is_ok(), "{}", group.uuid);
        let roles: Vec<(&str, Role, bool)> = group
            .volumes
            .iter()
            .map(|v| (v.name.as_str(), v.role, v.active))
            .collect();
        assert_eq!(
            roles,
            [
                ("Base-0", Role::Base, false),
                ("Base-0.1", Role::Layer, true),
                ("Base-0.2", Role::Layer, false),
                ("Base-0.3", Role::Incomplete, false),
                ("Base-1", Role::Base, false),
                ("Config", Role::Volume, true),
                ("ImagePool", Role::Pool, true),
                ("data", Role::Foreign, true),
            ]
        );
        let pool = group.pool().unwrap();
        assert_eq!(
            (pool.size, pool.data_percent, pool.metadata_percent),
            (7_109_345_280, "5.68".parse().ok(), "10.33".parse().ok())
        );
        assert_eq!(
            (
                pool.metadata_size,
                pool.chunk_size,
                pool.monitored,
                pool.transaction_id,
                pool.profile.as_str()
            ),
            (64 << 20, 64 << 10, true, Some(7), "imgbased")
        );
        assert_eq!(group.bases()[0].layers.len(), 2);
        let base = group.volume("Base-1").unwrap();
        assert!(!base.writable && base.skips_activation);
        assert!(base.digest().unwrap().starts_with("4ddc520c235cc104"));
        assert!(pool.zeroes && !base.is_origin);
        let config = group.volume("Config").unwrap();
        assert!(config.writable && !config.skips_activation);
    }

    #[test]
    fn a_report_to_show_has_the_same_but_for_what_only_the_pool_has() {
        let shown: String = HOST
            .lines()
            .map(|line| line.rsplitn(6, SEPARATOR).last().unwrap().to_owned() + "\n")
            .collect();
        let mut group = parse(HOST, &vg("HostVG")).unwrap().unwrap();
        for volume in &mut group.volumes {
            (volume.metadata_size, volume.chunk_size) = (0, 0);
            (volume.monitored, volume.profile) = (false, String::new());
            volume.transaction_id = None;
        }
        assert_eq!(parse(&shown, &vg("HostVG")).unwrap(), Some(group));
    }

    #[test]
    fn a_pool_that_does_not_zero_and_a_layer_with_a_snapshot_that_is_not_thin() {
        let report = HOST
            .replace("twi-aotz--", "twi-aot---")
            .replace("|Vwi---tz-k||||0|||\n", "|owi---tz-k||||0|||\n");
        let group = parse(&report, &vg("HostVG")).unwrap().unwrap();
        assert!(!group.pool().unwrap().zeroes);
        let layer = group.volume("Base-0.2").unwrap();
        assert!(layer.is_origin && !layer.is_merging && layer.role == Role::Layer);
        let report = HOST.replace("|Vwi-aotz-k|", "|Owi-aotz-k|");
        let group = parse(&report, &vg("HostVG")).unwrap().unwrap();
        let layer = group.volume("Base-0.1").unwrap();
        assert!(layer.is_merging && !layer.is_origin && layer.role == Role::Layer);
    }

    #[test]
    fn what_keeps_a_pool_from_being_written_to() {
        for (attributes, fault) in [
            ("twi-aotz--", None),
            ("twi-cotzM-", Some(Fault::NeedsCheck)),
            ("twi-Cotz--", Some(Fault::NeedsCheck)),
            ("twi-aotzM-", Some(Fault::ReadOnly)),
            ("twi-aotzD-", Some(Fault::NoSpace)),
            ("twi-aotzF-", Some(Fault::Failed)),
        ] {
            let report = HOST.replace("twi-aotz--", attributes);
            let group = parse(&report, &vg("HostVG")).unwrap().unwrap();
            let pool = group.pool().unwrap();
            assert_eq!((pool.fault, pool.active), (fault, true), "{attributes}");
        }
        let full = HOST
            .replace("twi-aotz--", "twi-aotzM-")
            .replace("|10.33|", "|99.90|");
        let group = parse(&full, &vg("HostVG")).unwrap().unwrap();
        assert_eq!(group.pool().unwrap().fault, Some(Fault::NoMetadata));
    }

    #[test]
    fn a_group_that_is_not_there() {
        assert_eq!(parse("", &vg("HostVG")).unwrap(), None);
        assert_eq!(parse(HOST, &vg("Other")).unwrap(), None);
    }

    #[test]
    fn a_missing_disk_is_counted() {
        let group = parse(MISSING_DISK, &vg("Two")).unwrap().unwrap();
        assert_eq!(group.missing_pvs, 1);
    }

    #[test]
    fn a_volume_with_two_segments_is_one_volume() {
        assert_eq!(MISSING_DISK.matches("|both|").count(), 2);
        let group = parse(MISSING_DISK, &vg("Two")).unwrap().unwrap();
        assert_eq!(group.volumes.len(), 1);
    }

    #[test]
    fn a_group_without_volumes() {
        let group = parse(EMPTY_GROUP, &vg("Empty")).unwrap().unwrap();
        assert_eq!((group.size, group.volumes.len()), (130_023_424, 0));
    }

    #[test]
    fn two_groups_with_one_name_are_refused() {
        let twice = HOST.replacen("HostVG|", "HostVG|x", 1);
        let error = parse(&twice, &vg("HostVG")).unwrap_err().to_string();
        assert!(
            error.contains("two volume groups with the name HostVG"),
            "{error}"
        );
    }

    #[test]
    fn of_two_groups_with_one_name_the_one_with_the_uuid_is_read() {
        let ours = HOST.split('|').nth(1).unwrap();
        let other = HOST.replace(ours, "xxxxxx-m031-EmV1-U9Vn-3yA0-7NL3-j32vhZ");
        let expected = parse(HOST, &vg("HostVG")).unwrap();
        for (report, has_others) in [
            (HOST.to_owned(), false),
            (format!("{other}{HOST}"), true),
            (format!("{HOST}{other}"), true),
        ] {
            let (vg, uuid) = (vg("HostVG"), ours.parse().unwrap());
            let mut reader = Reader::new(&vg, Some(&uuid));
            for line in report.lines() {
                reader.take(line).unwrap();
            }
            assert_eq!(reader.has_seen_others(), has_others);
            assert_eq!(reader.group(), expected);
        }
    }

    #[test]
    fn a_pool_tag_on_something_else_makes_no_pool() {
        let forged = HOST.replace("|data||", "|data|imgbased:pool|");
        let group = parse(&forged, &vg("HostVG")).unwrap().unwrap();
        assert_eq!(group.volume("data").unwrap().role, Role::Foreign);
    }

    #[test]
    fn a_profile_can_have_any_name() {
        let odd = HOST.replace("|imgbased\n", "|a|b \"c\n");
        let group = parse(&odd, &vg("HostVG")).unwrap().unwrap();
        assert_eq!(group.pool().unwrap().profile, "a|b \"c");
    }

    #[test]
    fn what_is_not_a_report_is_refused() {
        let cut = &HOST[..HOST.len() - 100];
        let other_units = HOST.replace("8048869376", "7.50g");
        let no_column = HOST.replace("|801112064", "");
        let no_attributes = HOST.replace("twi-aotz--", "twi");
        let chat = format!("  Reading volume groups.\n{HOST}");
        for text in [
            "{}",
            "\n",
            cut,
            &other_units,
            &no_column,
            &no_attributes,
            &chat,
        ] {
            assert!(parse(text, &vg("HostVG")).is_err(), "{text:?}");
        }
    }
}
