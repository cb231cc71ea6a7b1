//! Who may do what: one table, tested cell by cell.
//!
//! | operation      | node | viewer | submitter | operator | admin |
//! |----------------|------|--------|-----------|----------|-------|
//! | view           |      | yes    | yes       | yes      | yes   |
//! | read_artifacts | yes  |        | yes       | yes      | yes   |
//! | store_blobs    | yes  |        | yes       | yes      | yes   |
//! | submit         |      |        | yes       | yes      | yes   |
//! | cancel_own     |      |        | yes       | yes      | yes   |
//! | cancel_any     |      |        |           | yes      | yes   |
//! | create_token   |      |        |           |          | yes   |

use serde::{Deserialize, Serialize};

use crate::wire::client::{FromClient, Refusal, RefusalKind};
use crate::wire::join::Principal;

/// Roles of users; each may do all that the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Viewer,
    Submitter,
    Operator,
    Admin,
}

/// What a principal asks to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Jobs, logs, nodes, status.
    View,
    /// Read outputs, checkpoints and any other blob.
    ReadArtifacts,
    StoreBlobs,
    Submit,
    CancelOwn,
    CancelAny,
    CreateToken,
}

/// A principal may not do this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizeError {
    #[error("role `{}` may not {}\nhint: this needs a certificate with role `{}`: ask an admin for `ctl token create --role {}`",
        role.name(), operation.describe(), needed.name(), needed.name())]
    RoleTooLow { role: Role, needed: Role, operation: Operation },
    #[error("a node may not {}\nhint: use a user's certificate", operation.describe())]
    Node { operation: Operation },
}

/// The table.
///
/// # Errors
/// The principal may not.
pub fn authorize(principal: &Principal, operation: Operation) -> Result<(), AuthorizeError> {
    match principal {
        Principal::Node { .. } if operation.open_to_nodes() => Ok(()),
        Principal::Node { .. } => Err(AuthorizeError::Node { operation }),
        Principal::User { role, .. } => {
            let needed = operation.role_needed();
            if *role >= needed {
                Ok(())
            } else {
                Err(AuthorizeError::RoleTooLow { role: *role, needed, operation })
            }
        }
    }
}

impl Operation {
    pub const ALL: [Operation; 7] = [
        Operation::View,
        Operation::ReadArtifacts,
        Operation::StoreBlobs,
        Operation::Submit,
        Operation::CancelOwn,
        Operation::CancelAny,
        Operation::CreateToken,
    ];

    /// What `request` asks for. `owns` says whether the job that it names was submitted by the asker.
    pub fn of(request: &FromClient, owns: bool) -> Operation {
        match request {
            FromClient::Submit { .. } => Operation::Submit,
            FromClient::Cancel { .. } if owns => Operation::CancelOwn,
            FromClient::Cancel { .. } => Operation::CancelAny,
            FromClient::Artifacts { .. } => Operation::ReadArtifacts,
            FromClient::CreateToken { .. } => Operation::CreateToken,
            FromClient::Jobs
            | FromClient::JobsBefore { .. }
            | FromClient::Job { .. }
            | FromClient::Logs { .. }
            | FromClient::Watch { .. }
            | FromClient::Nodes
            | FromClient::Devices
            | FromClient::Status => Operation::View,
        }
    }

    fn role_needed(self) -> Role {
        match self {
            Operation::View => Role::Viewer,
            Operation::ReadArtifacts | Operation::StoreBlobs | Operation::Submit | Operation::CancelOwn => {
                Role::Submitter
            }
            Operation::CancelAny => Role::Operator,
            Operation::CreateToken => Role::Admin,
        }
    }

    fn open_to_nodes(self) -> bool {
        match self {
            Operation::ReadArtifacts | Operation::StoreBlobs => true,
            Operation::View
            | Operation::Submit
            | Operation::CancelOwn
            | Operation::CancelAny
            | Operation::CreateToken => false,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Operation::View => "look at jobs and nodes",
            Operation::ReadArtifacts => "read artifacts",
            Operation::StoreBlobs => "store files",
            Operation::Submit => "submit jobs",
            Operation::CancelOwn => "cancel jobs",
            Operation::CancelAny => "cancel jobs of others",
            Operation::CreateToken => "create tokens",
        }
    }
}

impl Role {
    pub const ALL: [Role; 4] = [Role::Viewer, Role::Submitter, Role::Operator, Role::Admin];

    pub fn name(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Submitter => "submitter",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    /// The role of that name.
    pub fn named(name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|role| role.name() == name)
    }
}

impl From<AuthorizeError> for Refusal {
    fn from(error: AuthorizeError) -> Refusal {
        Refusal::from_text(RefusalKind::Denied, &error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    #[test]
    fn every_cell_of_the_table_is_as_drawn() {
        // Columns: node, viewer, submitter, operator, admin.
        let table = [
            (Operation::View, "-++++"),
            (Operation::ReadArtifacts, "+-+++"),
            (Operation::StoreBlobs, "+-+++"),
            (Operation::Submit, "--+++"),
            (Operation::CancelOwn, "--+++"),
            (Operation::CancelAny, "---++"),
            (Operation::CreateToken, "----+"),
        ];
        assert_eq!(table.map(|(operation, _)| operation), Operation::ALL);
        let mut principals = vec![Principal::Node { node: NodeId(1) }];
        principals.extend(Role::ALL.map(|role| Principal::User { name: "ada".into(), role }));
        for (operation, row) in table {
            for (principal, cell) in principals.iter().zip(row.chars()) {
                assert_eq!(
                    authorize(principal, operation).is_ok(),
                    cell == '+',
                    "{principal:?} {operation:?}"
                );
            }
        }
    }

    #[test]
    fn refusal_names_role_needed_and_remedy() {
        let viewer = Principal::User { name: "ada".into(), role: Role::Viewer };
        let refusal = Refusal::from(authorize(&viewer, Operation::Submit).unwrap_err());
        assert_eq!(refusal.kind, RefusalKind::Denied);
        assert_eq!(refusal.message, "role `viewer` may not submit jobs");
        assert!(refusal.hint.is_some_and(|hint| hint.contains("role `submitter`")));
    }
}
