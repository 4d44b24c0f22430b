//! A user of PostgreSQL or Redis for one pair, whose password can be changed and restored.

use std::collections::BTreeMap;

use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use crate::{postgres, redis, secrets, up::system::System};

/// A user of PostgreSQL or Redis.
pub struct Store {
    kind: Kind,
    user: String,
    pub password: String,
    url: String,
}

enum Kind {
    /// The URL of the superuser.
    Postgres(String),
    /// The port and the passwords of the users.
    Redis(u16, BTreeMap<String, String>),
}

impl Store {
    /// Creates the user. Returns `None` for a dependency that is a service.
    pub async fn prepare(
        system: &System,
        process: &str,
        dependency: &str,
        proxy: u16,
    ) -> anyhow::Result<Option<Self>> {
        let (user, password) = (format!("{process}_without_{dependency}"), secrets::generate_password());
        let store = match dependency {
            "postgres" => {
                let superuser = system.launcher().postgres_url.to_owned();
                let proxied =
                    superuser.replace(&format!(":{}/", system.topology.postgres), &format!(":{proxy}/"));
                let url = postgres::for_role(&proxied, &user, &password)?;
                let store = Self { kind: Kind::Postgres(superuser), user, password, url };
                // The role inherits its rights from the service's role.
                store.execute(&format!("create role {} login in role shoppee_{process}", store.user)).await?;
                store
            }
            "redis" => {
                let url = format!("redis://{user}:{password}@127.0.0.1:{proxy}");
                let kind = Kind::Redis(system.topology.redis, system.secrets.redis.clone());
                Self { kind, user, password, url }
            }
            _ => return Ok(None),
        };
        store.accept().await?;
        Ok(Some(store))
    }

    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Restores the user's password.
    pub async fn accept(&self) -> anyhow::Result<()> {
        self.set_password(&self.password).await
    }

    /// Changes the user's password, so that the process is refused.
    pub async fn refuse(&self) -> anyhow::Result<()> {
        self.set_password("another").await
    }

    async fn set_password(&self, password: &str) -> anyhow::Result<()> {
        let user = &self.user;
        match &self.kind {
            Kind::Postgres(_) => self.execute(&format!("alter role {user} password '{password}'")).await,
            Kind::Redis(port, passwords) => {
                let command = format!("ACL SETUSER {user} on resetpass >{password} ~* &* +@all");
                redis::run_admin_command(*port, passwords, &command).await.map(drop)
            }
        }
    }

    async fn execute(&self, sql: &str) -> anyhow::Result<()> {
        if let Kind::Postgres(superuser) = &self.kind {
            let mut connection = PgConnection::connect(superuser).await?;
            connection.execute(AssertSqlSafe(sql.to_owned())).await?;
            connection.close().await?;
        }
        Ok(())
    }
}
