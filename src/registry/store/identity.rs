//! The component's own certificate and key.

use jid::BareJid;

use super::{Store, error::StoreError, sql::query};

/// Stores a component's own certificate and key, unless there are some.
pub(super) const KEEP_IDENTITY: &str =
    "INSERT INTO identities (component, certificate, private_key) VALUES ($1, $2, $3)
     ON CONFLICT (component) DO NOTHING";

impl Store {
    /// Returns the component's own certificate and private key (PKCS#8), if they are stored.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn identity(
        &self,
        component: &BareJid,
    ) -> Result<Option<(Vec<u8>, Vec<u8>)>, StoreError> {
        self.read("identity", async |db| {
            let row = query("SELECT certificate, private_key FROM identities WHERE component = $1")
                .bind(component.as_str())
                .fetch_optional(db)
                .await?;
            Ok(match row {
                Some(row) => Some((row.try_get("certificate")?, row.try_get("private_key")?)),
                None => None,
            })
        })
        .await
    }

    /// Stores the component's own certificate and private key, unless some are stored already.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn keep_identity(
        &self,
        component: &BareJid,
        certificate: &[u8],
        private_key: &[u8],
    ) -> Result<(), StoreError> {
        self.change_apart("keep_identity", async |tx| {
            query(KEEP_IDENTITY)
                .bind(component.as_str())
                .bind(certificate.to_vec())
                .bind(private_key.to_vec())
                .execute(tx)
                .await?;
            Ok(())
        })
        .await
    }
}
