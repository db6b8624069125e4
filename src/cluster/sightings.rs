//! How long ago each instance gave a sign of life, by this machine's own clock.
//!
//! A row in the database has the time of its last sign of life by the clock of the database. That clock may be set while
//! instances run, so its time counts as a mark only: an instance that has another mark than at the last look is alive, and
//! the age of a mark is how long it has been seen here. The database says how old a mark is that is seen for the first time.
//! That tells which one not to follow, but not which lease is over: the clock may have been set a moment ago.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::registry::store::records::Instance;

/// The mark of an instance.
#[derive(Clone, Copy, Debug)]
struct Mark {
    beat: i64,
    /// How old it was when it was first seen.
    age: Duration,
    at: Instant,
}

/// The marks of all instances at the last look.
#[derive(Debug, Default)]
pub(super) struct Sightings(HashMap<String, Mark>);

impl Sightings {
    /// Gives each instance its age at `now`, which must be after the database has answered: no age is too high.
    ///
    /// The database's own clock says how old an instance is that is seen for the first time.
    pub(super) fn aged(&mut self, mut rows: Vec<Instance>, now: Instant) -> Vec<Instance> {
        let before = std::mem::take(&mut self.0);
        for row in &mut rows {
            let mark = match before.get(&row.id) {
                Some(mark) if mark.beat == row.beat => *mark,
                Some(_) => Mark { beat: row.beat, age: Duration::ZERO, at: now },
                None => Mark { beat: row.beat, age: row.age, at: now },
            };
            row.watched = now.saturating_duration_since(mark.at);
            row.age = mark.age.saturating_add(row.watched);
            self.0.insert(row.id.clone(), mark);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A row as the database gives it: its mark, and its age by the database's clock, seconds.
    fn row(beat: i64, age: u64) -> Vec<Instance> {
        let (id, advertise) = ("a".to_owned(), String::new());
        let age = Duration::from_secs(age);
        vec![Instance {
            id,
            leads: true,
            linked: true,
            advertise,
            age,
            watched: Duration::ZERO,
            beat,
        }]
    }

    #[test]
    fn a_clock_of_the_database_that_is_set_makes_nobody_old_and_nobody_young() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut seen = Sightings::default();
        let mut age = |beat, age, now| seen.aged(row(beat, age), at(now))[0].age.as_secs();
        assert_eq!(age(1, 2, 0), 2, "the first time");
        assert_eq!(age(1, 3, 1), 3);
        assert_eq!(age(2, 0, 2), 0);
        // An hour forward, and the instance is alive.
        assert_eq!(age(3, 3600, 3), 0);
        assert_eq!(age(4, 1, 4), 0);
        // An hour back, and the instance is silent.
        assert_eq!(age(4, 0, 10), 6);
        assert_eq!(age(4, 0, 30), 26);
        // This process stood still meanwhile.
        assert_eq!(age(5, 0, 500), 0);
    }

    #[test]
    fn one_that_was_forgotten_is_forgotten() {
        let start = Instant::now();
        let mut seen = Sightings::default();
        seen.aged(row(1, 0), start);
        seen.aged(Vec::new(), start);
        assert!(seen.0.is_empty());
    }
}
