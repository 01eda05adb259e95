//! A table of fixed size whose rows are found by number: registering in it allocates nothing.
//!
//! # Invariants
//! - SLOT-1: a bit of `used` is set exactly while the row holds an item.

/// At most `N` (up to 64) items.
pub(super) struct Slots<T, const N: usize> {
    used: u64,
    items: [Option<T>; N],
}

impl<T: Copy, const N: usize> Slots<T, N> {
    const FITS: () = assert!(N <= 64);

    pub(super) const fn new() -> Self {
        let () = Self::FITS;
        Self {
            used: 0,
            items: [None; N],
        }
    }

    /// Puts `item` into a free row; `None` when all are taken.
    pub(super) fn insert(&mut self, item: T) -> Option<usize> {
        let index = (!self.used).trailing_zeros() as usize;
        if index >= N {
            return None;
        }
        self.used |= 1 << index;
        self.items[index] = Some(item);
        Some(index)
    }

    pub(super) const fn is_full(&self) -> bool {
        (!self.used).trailing_zeros() as usize >= N
    }

    /// Frees a row.
    pub(super) fn remove(&mut self, index: usize) -> Option<T> {
        self.used &= !(1 << index);
        self.items[index].take()
    }

    pub(super) fn get_mut(&mut self, index: usize) -> Option<&mut T> {
        self.items[index].as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &T)> {
        let mut rest = self.used;
        core::iter::from_fn(move || {
            let index = rest.trailing_zeros() as usize;
            let item = self.items.get(index)?.as_ref()?;
            rest &= rest - 1;
            Some((index, item))
        })
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut T)> {
        let rows = if self.used == 0 {
            0
        } else {
            64 - self.used.leading_zeros() as usize
        };
        self.items[..rows]
            .iter_mut()
            .enumerate()
            .filter_map(|(index, item)| Some((index, item.as_mut()?)))
    }
}
