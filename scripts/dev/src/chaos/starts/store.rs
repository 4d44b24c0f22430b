//! PostgreSQL or Redis with a user of its own for a pair, whose password can become wrong and right again.

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
    /// With the superuser's URL.
    Postgres(String),
    /// With its port and the passwords of its users.
    Redis(u16, BTreeMap<String, String>),
}

impl Store {
    /// None for a dependency that is no store.
    pub async fn prepare(
        system: &System,
        process: &str,
        dependency: &str,
        proxy: u16,
    ) -> anyhow::Result<Option<Self>> {
        let (user, password) = (format!("{process}_without_{dependency}"), secrets::password());
        let store = match dependency {
            "postgres" => {
                let superuser = system.shop().postgres_url.to_owned();
                let through =
                    superuser.replace(&format!(":{}/", system.plan.postgres), &format!(":{proxy}/"));
                let url = postgres::for_role(&through, &user, &password)?;
                let store = Self { kind: Kind::Postgres(superuser), user, password, url };
                // The role has all its rights as a member of the service's own role.
                store.ask(&format!("create role {} login in role shoppee_{process}", store.user)).await?;
                store
            }
            "redis" => {
                let url = format!("redis://{user}:{password}@127.0.0.1:{proxy}");
                let kind = Kind::Redis(system.plan.redis, system.secrets.redis.clone());
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

    /// Lets the user in by its password.
    pub async fn accept(&self) -> anyhow::Result<()> {
        self.change(&self.password).await
    }

    /// Lets the user in by another password.
    pub async fn refuse(&self) -> anyhow::Result<()> {
        self.change("another").await
    }

    async fn change(&self, password: &str) -> anyhow::Result<()> {
        let user = &self.user;
        match &self.kind {
            Kind::Postgres(_) => self.ask(&format!("alter role {user} password '{password}'")).await,
            Kind::Redis(port, passwords) => {
                let command = format!("ACL SETUSER {user} on resetpass >{password} ~* &* +@all");
                redis::administer(*port, passwords, &command).await.map(drop)
            }
        }
    }

    async fn ask(&self, sql: &str) -> anyhow::Result<()> {
        if let Kind::Postgres(superuser) = &self.kind {
            let mut connection = PgConnection::connect(superuser).await?;
            connection.execute(AssertSqlSafe(sql.to_owned())).await?;
            connection.close().await?;
        }
        Ok(())
    }
}
