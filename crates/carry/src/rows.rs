//! Rows that are found by a key or by a number, in little memory.
//!
//! A hash map keeps up to half of its slots free, so large values cost twice their size in it. Here the map holds only
//! numbers of 4 bytes, and the rows lie in blocks. A vector of rows would leave its earlier memory to the allocator each
//! time that it grows.

use std::{
    collections::hash_map::RandomState,
    hash::{BuildHasher, Hash},
};

use hashbrown::HashTable;
use slab::Slab;

/// How many rows are allocated together.
const BLOCK: usize = 64;

/// The number of blocks that an empty collection keeps.
const KEPT: usize = 16;

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
    rows: Places<R>,
}

/// Numbered places for rows.
#[derive(Debug)]
struct Places<R> {
    blocks: Vec<Slab<R>>,
    /// The blocks with a free place.
    open: Vec<usize>,
    taken: usize,
}

impl<R> Places<R> {
    const EMPTY: Self = Self { blocks: Vec::new(), open: Vec::new(), taken: 0 };

    fn get(&self, number: u32) -> Option<&R> {
        self.blocks.get(number as usize / BLOCK)?.get(number as usize % BLOCK)
    }

    fn get_mut(&mut self, number: u32) -> Option<&mut R> {
        self.blocks.get_mut(number as usize / BLOCK)?.get_mut(number as usize % BLOCK)
    }

    fn insert(&mut self, row: R) -> u32 {
        let block = self.open.last().copied().unwrap_or(self.blocks.len());
        if block == self.blocks.len() {
            self.blocks.push(Slab::with_capacity(BLOCK));
            self.open.push(block);
        }
        let rows = &mut self.blocks[block];
        let place = rows.insert(row);
        if rows.len() == BLOCK {
            self.open.pop();
        }
        self.taken += 1;
        number(block, place)
    }

    fn remove(&mut self, number: u32) -> Option<R> {
        let block = self.blocks.get_mut(number as usize / BLOCK)?;
        let row = block.try_remove(number as usize % BLOCK)?;
        if block.len() + 1 == BLOCK {
            self.open.push(number as usize / BLOCK);
        }
        self.taken -= 1;
        Some(row)
    }
}

impl<R> Default for Rows<R> {
    fn default() -> Self {
        Self { hasher: RandomState::new(), index: HashTable::new(), rows: Places::EMPTY }
    }
}

impl<R: Row> Rows<R> {
    /// Returns how many rows there are.
    pub fn len(&self) -> usize {
        self.rows.taken
    }

    /// Returns whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.taken == 0
    }

    /// Returns the number of the row with a key.
    pub fn find(&self, key: &R::Key) -> Option<u32> {
        let hash = self.hasher.hash_one(key);
        self.index.find(hash, |number| has_key(&self.rows, *number, key)).copied()
    }

    /// Returns a row.
    pub fn get(&self, number: u32) -> Option<&R> {
        self.rows.get(number)
    }

    /// Returns a row, of which anything but the key may be changed.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut R> {
        self.rows.get_mut(number)
    }

    /// Adds a row, whose key no other row has, and returns its number.
    pub fn insert(&mut self, row: R) -> u32 {
        let Self { hasher, index, rows } = self;
        let hash = hasher.hash_one(row.key());
        let number = rows.insert(row);
        let rehash = |number: &u32| rows.get(*number).map_or(0, |row| hasher.hash_one(row.key()));
        index.insert_unique(hash, number, rehash);
        number
    }

    /// Removes a row.
    pub fn remove(&mut self, number: u32) -> Option<R> {
        let row = self.rows.remove(number)?;
        let hash = self.hasher.hash_one(row.key());
        if let Ok(entry) = self.index.find_entry(hash, |found| *found == number) {
            entry.remove();
        }
        if self.is_empty() && self.rows.blocks.len() > KEPT {
            self.rows = Places::EMPTY;
            self.index = HashTable::new();
        }
        Some(row)
    }

    /// Returns all rows with their numbers, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &R)> {
        let blocks = self.rows.blocks.iter().enumerate();
        blocks.flat_map(|(block, rows)| {
            rows.iter().map(move |(place, row)| (number(block, place), row))
        })
    }

    /// Returns all rows, of which anything but the key may be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut R)> {
        let blocks = self.rows.blocks.iter_mut().enumerate();
        blocks.flat_map(|(block, rows)| {
            rows.iter_mut().map(move |(place, row)| (number(block, place), row))
        })
    }
}

/// Returns the number of a place in a block. As many rows as it can tell apart do not fit into memory.
fn number(block: usize, place: usize) -> u32 {
    (block * BLOCK + place) as u32
}

fn has_key<R: Row>(rows: &Places<R>, number: u32, key: &R::Key) -> bool {
    rows.get(number).is_some_and(|row| row.key() == key)
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
        assert!(rows.is_empty() && rows.rows.blocks.is_empty(), "what was large is given back");
    }
}
