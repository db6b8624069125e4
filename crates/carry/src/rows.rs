//! Rows that are found by a key or by a number, in little memory.
//!
//! A hash map keeps up to half of its slots free, so large values cost twice their size in it. Here the map holds only
//! numbers of 4 bytes, and the rows lie in one vector, whose spare capacity is not resident.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hash},
};

use hashbrown::HashTable;
use slab::Slab;

/// The capacity that an empty collection keeps.
const KEPT: usize = 1024;

/// A row, which has a key of its own.
pub trait Row {
    /// What finds it.
    type Key: Eq + Hash + ?Sized;

    /// Returns what finds it. This never changes while the row is in a collection.
    fn key(&self) -> &Self::Key;
}

/// Rows, each with a number that is its own until it is removed, and is another row's later.
#[derive(Debug)]
pub struct Rows<R> {
    /// Keyed, so that nobody can choose keys that collide.
    hasher: RandomState,
    index: HashTable<u32>,
    rows: Slab<R>,
}

impl<R> Default for Rows<R> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), index: HashTable::new(), rows: Slab::new() }
    }
}

impl<R: Row> Rows<R> {
    /// Returns how many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Returns whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Returns the number of the row with a key.
    pub fn find(&self, key: &R::Key) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.index.find(hash, |number| has_key(&self.rows, *number, key)).copied()
    }

    /// Returns a row.
    pub fn get(&self, number: u32) -> Option<&R> {
        self.rows.get(number as usize)
    }

    /// Returns a row, of which anything but the key may be changed.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut R> {
        self.rows.get_mut(number as usize)
    }

    /// Adds a row, whose key no other row has, and returns its number.
    pub fn insert(&mut self, row: R) -> u32 {
        let Self { hasher, index, rows } = self;
        let hash = hasher.hash_one(row.key());
        // As many rows do not fit into memory.
        let number = rows.insert(row) as u32;
        let rehash =
            |number: &u32| rows.get(*number as usize).map_or(0, |row| hasher.hash_one(row.key()));
        index.insert_unique(hash, number, rehash);
        number
    }

    /// Removes a row.
    pub fn remove(&mut self, number: u32) -> Option<R> {
        let row = self.rows.try_remove(number as usize)?;
        let hash = self.hasher.hash_one(row.key());
        if let Ok(entry) = self.index.find_entry(hash, |found| *found == number) {
            entry.remove();
        }
        if self.rows.is_empty() && self.rows.capacity() > KEPT {
            self.rows = Slab::new();
            self.index = HashTable::new();
        }
        Some(row)
    }

    /// Returns all rows with their numbers, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &R)> {
        self.rows.iter().map(|(number, row)| (number as u32, row))
    }

    /// Returns all rows, of which anything but the key may be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut R)> {
        self.rows.iter_mut().map(|(number, row)| (number as u32, row))
    }
}

fn has_key<R: Row>(rows: &Slab<R>, number: u32, key: &R::Key) -> bool {
    rows.get(number as usize).is_some_and(|row| row.key() == key)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Pair(u16, u8);

    impl Row for Pair {
        type Key = u16;

        fn key(&self) -> &u16 {
            &self.0
        }
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_holds(steps in proptest::collection::vec((0u16..40, any::<u8>(), any::<bool>()), 0..300)) {
            let (mut rows, mut map) = (Rows::<Pair>::default(), HashMap::new());
            for (key, value, removed) in steps {
                let found = rows.find(&key);
                prop_assert_eq!(found.and_then(|n| rows.get(n)).map(|row| row.1), map.get(&key).copied());
                match found {
                    Some(number) if removed => {
                        prop_assert_eq!(rows.remove(number), map.remove(&key).map(|value| Pair(key, value)));
                        prop_assert_eq!(rows.remove(number), None);
                    }
                    Some(number) => {
                        map.insert(key, value);
                        rows.get_mut(number).unwrap().1 = value;
                    }
                    None => {
                        map.insert(key, value);
                        let number = rows.insert(Pair(key, value));
                        prop_assert_eq!(rows.find(&key), Some(number));
                    }
                }
                prop_assert_eq!(rows.len(), map.len());
                prop_assert_eq!(rows.is_empty(), map.is_empty());
            }
            let mut all: Vec<_> = rows.iter().map(|(_, row)| (row.0, row.1)).collect();
            let mut expected: Vec<_> = map.into_iter().collect();
            all.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(all, expected);
        }
    }

    #[test]
    fn the_number_of_a_row_stays_while_others_come_and_go() {
        let mut rows = Rows::default();
        let numbers: Vec<u32> = (0..5000).map(|n| rows.insert(Pair(n, 1))).collect();
        for n in (0..5000).step_by(2) {
            rows.remove(numbers[n]);
        }
        for n in (1..5000).step_by(2) {
            assert_eq!(rows.find(&(n as u16)), Some(numbers[n]));
            rows.remove(numbers[n]);
        }
        assert!(rows.is_empty() && rows.rows.capacity() == 0, "what was large is given back");
    }
}
