//! A place in a list that is longer than the screen.

/// Which row is chosen, and which is the first that is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The chosen row.
    pub at: usize,
    /// The first row on the screen.
    pub top: usize,
}

impl Place {
    /// Chooses a row, and moves the screen no further than it has to.
    pub fn choose(&mut self, at: usize, length: usize, height: usize) {
        self.at = at.min(length.saturating_sub(1));
        self.settle(length, height);
    }

    /// Goes so many rows down, or up.
    pub fn step(&mut self, by: isize, length: usize, height: usize) {
        self.choose(self.at.saturating_add_signed(by), length, height);
    }

    /// After the list or the screen has changed.
    pub fn settle(&mut self, length: usize, height: usize) {
        let height = height.max(1);
        self.at = self.at.min(length.saturating_sub(1));
        self.top = self.top.min(self.at).max((self.at + 1).saturating_sub(height));
        self.top = self.top.min(length.saturating_sub(height));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_chosen_is_on_the_screen_whatever_becomes_of_the_list() {
        let mut place = Place::default();
        for (step, length, height, expected) in [
            (1, 10, 3, (1, 0)),
            (3, 10, 3, (4, 2)),
            (100, 10, 3, (9, 7)),
            (-1, 10, 3, (8, 7)),
            (-100, 10, 3, (0, 0)),
            (5, 10, 0, (5, 5)),
            (0, 2, 9, (1, 0)),
            (0, 0, 9, (0, 0)),
        ] {
            place.step(step, length, height);
            assert_eq!((place.at, place.top), expected, "{step} {length} {height}");
        }
    }
}
