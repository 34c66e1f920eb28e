//! In which order a stack is taken down: what lies on top goes first.

/// The indices of a stack's parts, so that each comes before all that it stands on. `below` tells for each
/// part on which others it stands. Parts of the same height keep the reverse of their order, as what was made
/// last goes first.
pub fn top_first(below: &[Vec<usize>]) -> Vec<usize> {
    let mut heights = vec![0_usize; below.len()];
    // No part is higher than there are parts, but for those that stand on themselves: these end somewhere.
    for _ in below {
        for part in 0..below.len() {
            let under = below[part].iter().filter_map(|at| heights.get(*at));
            heights[part] = under.map(|height| height + 1).max().unwrap_or(0);
        }
    }
    let mut order: Vec<usize> = (0..below.len()).rev().collect();
    order.sort_by_key(|part| std::cmp::Reverse(heights[*part]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_comes_before_what_it_stands_on() {
        for (below, order) in [
            (vec![], vec![]),
            // Nothing stands on anything.
            (vec![vec![], vec![], vec![]], vec![2, 1, 0]),
            // A chain, in the order in which it was made, and in the reverse.
            (vec![vec![], vec![0], vec![1]], vec![2, 1, 0]),
            (vec![vec![1], vec![2], vec![]], vec![0, 1, 2]),
            // A pool (2) on its data (0) and metadata (1), with two volumes; data lies on a RAID (5).
            (
                vec![vec![5], vec![], vec![0, 1], vec![2], vec![2], vec![]],
                vec![4, 3, 2, 0, 5, 1],
            ),
            // One that stands on two heights at once.
            (vec![vec![], vec![0], vec![0, 1]], vec![2, 1, 0]),
        ] {
            assert_eq!(top_first(&below), order, "{below:?}");
        }
    }

    #[test]
    fn all_parts_are_there_also_those_of_a_circle_or_on_nothing_that_is_known() {
        for below in [
            vec![vec![0], vec![]],
            vec![vec![1], vec![0], vec![1]],
            vec![vec![7], vec![0]],
        ] {
            let mut order = top_first(&below);
            order.sort_unstable();
            assert_eq!(order, (0..below.len()).collect::<Vec<_>>(), "{below:?}");
        }
    }
}
