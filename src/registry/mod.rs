//! The registry: which keys users have, who said so, and what became of them.
//!
//! | file | what |
//! |---|---|
//! | [`model`] | keys, their states, which change is allowed (pure) |
//! | [`material`] | certificates to prints (pure) |
//! | [`verdict`] | an offered print judged by its user's keys (pure) |
//! | [`store`] | what may be asked of the database |
//! | [`requests`] | `urn:fingerpost:keys:0` |

pub mod material;
pub mod model;
pub mod requests;
mod sqlite;
pub mod store;
pub mod verdict;

use jid::BareJid;

use self::{
    model::{Key, Visibility},
    store::{Store, StoreError},
};

/// The registry's settings.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who may see the keys of users that have not said otherwise.
    pub visibility: Visibility,
    /// How many active keys a user may have.
    pub keys_per_user: u32,
}

/// The registry: a store and who may see what. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    store: Store,
    options: Options,
}

impl Registry {
    /// A registry on a store.
    pub fn new(store: Store, options: Options) -> Self {
        Self { store, options }
    }

    /// Whether `asker`, who may use the service, may know of `owner`.
    pub fn admits(&self, asker: &BareJid, owner: &BareJid) -> bool {
        self.options.visibility.admits(asker, owner, &[])
    }

    /// The keys of `owner` that `asker` may know of: all, or none. Hidden, unknown and keyless look the same.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read.
    pub async fn visible_keys(
        &self,
        asker: &BareJid,
        owner: &BareJid,
    ) -> Result<Vec<Key>, StoreError> {
        // The database is asked in either case, so that the time tells nothing.
        let keys = self.store.keys_of(owner).await?;
        Ok(if self.admits(asker, owner) { keys } else { Vec::new() })
    }
}
