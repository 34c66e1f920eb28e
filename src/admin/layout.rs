//! `layout`: the volume group as a tree.

use anyhow::Result;

use super::Context;
use super::text::{self, Paint, Tone, TreeStyle};
use super::view::{self, View};
use crate::model::layout::Role;

/// Shows the group as a tree.
pub fn show(context: &Context) -> Result<()> {
    let view = view::load(context)?;
    context.show(&view, || {
        tree(&view, &TreeStyle::of_locale(), context.paint)
    })
}

fn tree(view: &View, style: &TreeStyle, paint: Paint) -> String {
    let mut rows = vec![(
        view.vg.clone(),
        format!("{}, {} free", text::size(view.size), text::size(view.free)),
    )];
    let mut left = usize::from(view.pool.is_some()) + view.volumes.len() + view.bases.len();
    let mut joint = || {
        left -= 1;
        (
            style.joint(left == 0),
            if left == 0 { style.gap } else { style.bar },
        )
    };
    if let Some(pool) = &view.pool {
        let (joint, _) = joint();
        rows.push((
            format!("{joint}{}", pool.name),
            format!("{} thin pool, {}", text::size(pool.size), pool.fullness("")),
        ));
    }
    for volume in &view.volumes {
        let (joint, _) = joint();
        let mut tone = Tone::Plain;
        let role = match volume.role {
            Role::Incomplete if volume.maker.is_some() => "incomplete: a command is making it",
            Role::Incomplete => {
                tone = Tone::Bad;
                "incomplete: interrupted while it was made"
            }
            Role::Volume => match &volume.path {
                Some(path) => &format!("shared volume, at {path}"),
                None => "shared volume",
            },
            Role::Snapshot => "snapshot of a shared volume, from before an update",
            Role::Layer => {
                tone = Tone::Bad;
                "layer of a base that is gone"
            }
            _ => "not managed",
        };
        rows.push((
            format!("{joint}{}", volume.name),
            format!("{} {}", text::size(volume.size), paint.tone(tone, role)),
        ));
    }
    for base in &view.bases {
        let (joint, below) = joint();
        let marks = base.marks(paint);
        let marks = paint.marks(&[
            (true, Tone::Plain, "base"),
            (!marks.is_empty(), Tone::Plain, &marks),
        ]);
        rows.push((
            format!("{joint}{}", base.name),
            format!("{} {marks}", text::size(base.size)),
        ));
        for (i, layer) in base.layers.iter().enumerate() {
            let joint = style.joint(i + 1 == base.layers.len());
            let marks = layer.marks(paint);
            let marks = paint.marks(&[
                (true, Tone::Plain, "layer"),
                (!marks.is_empty(), Tone::Plain, &marks),
            ]);
            rows.push((
                format!("{below}{joint}{}", layer.name),
                format!("{} {marks}", text::size(layer.size)),
            ));
        }
    }
    text::columns(&rows)
}
