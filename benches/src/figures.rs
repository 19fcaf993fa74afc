//! Medians and quartiles: what a noisy machine leaves of a measurement. Means are not used: one
//! preemption moves them.

/// The middle of some samples and the middle half of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Median.
    pub median: f64,
    /// First quartile.
    pub low: f64,
    /// Third quartile.
    pub high: f64,
    /// How many samples.
    pub samples: usize,
}

impl Spread {
    /// Of one sample, which has no spread.
    pub fn one(value: f64) -> Self {
        Self { median: value, low: value, high: value, samples: 1 }
    }

    /// Of at least one sample.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        (!sorted.is_empty()).then(|| Self {
            median: quantile(&sorted, 0.5),
            low: quantile(&sorted, 0.25),
            high: quantile(&sorted, 0.75),
            samples: sorted.len(),
        })
    }
}

/// The median, or nothing of nothing.
pub fn median(samples: impl IntoIterator<Item = f64>) -> Option<f64> {
    Spread::of(samples).map(|spread| spread.median)
}

/// The sample below which a part of them lies, or nothing of nothing.
pub fn part_of(samples: impl IntoIterator<Item = f64>, part: f64) -> Option<f64> {
    let mut sorted: Vec<f64> = samples.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    (!sorted.is_empty()).then(|| quantile(&sorted, part))
}

/// Between two samples the straight line between them.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = part * (sorted.len() - 1) as f64;
    let below = sorted[at.floor() as usize];
    let above = sorted[at.ceil() as usize];
    below + (above - below) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_wild_sample_moves_nothing() {
        let spread = Spread::of([3.0, 1.0, 2.0, 1000.0, 2.0]).unwrap();
        assert_eq!(spread, Spread { median: 2.0, low: 2.0, high: 3.0, samples: 5 });
    }

    #[test]
    fn of_an_even_number_the_median_is_between_the_middle_two() {
        assert_eq!(median([1.0, 2.0]), Some(1.5));
        assert_eq!(median([]), None);
    }

    #[test]
    fn the_last_hundredth_is_above_99_of_100() {
        assert_eq!(part_of((0..=100).rev().map(f64::from), 0.99), Some(99.0));
        assert_eq!(part_of([], 0.99), None);
    }
}
