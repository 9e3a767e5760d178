// Accounts and constants of the vault program. Byte offsets are in SPEC.md and mirrored by torg_chain/vault.py.
#pragma once
#include "abi.h"

// From 7001 on: the SPL Token and system programs number theirs from 0, and a failed transaction shows only the number.
enum Error {
  E_DATA = 7001,            // instruction data malformed or of the wrong length
  E_ACCOUNTS = 7002,        // too few or too many accounts
  E_SIGNER = 7003,          // a required signature is missing
  E_NOT_OURS = 7004,        // an account is not owned by this program or not of the expected type
  E_WRONG_ACCOUNT = 7005,   // not the account that the vault names
  E_ADDRESS = 7006,         // not the derived address
  E_TOKEN_ACCOUNT = 7007,   // not an initialized, unfrozen token account of the right mint and owner, or somebody else can move its tokens
  E_KIND = 7008,            // not for vaults of this kind
  E_GRACE = 7009,           // grace shorter or longer than the limits
  E_SALT = 7010,            // salt outside the window
  E_CAP_SIGNATURE = 7011,   // no Ed25519 instruction with the signer's cap for this vault
  E_CAP_EXPIRED = 7012,     // clock > valid_until
  E_ORDER = 7013,           // the operator ordered something else, or nothing
  E_STALE = 7014,           // settled != expected_settled
  E_OVER_CAP = 7015,        // settled + sum > cap
  E_OVER_BALANCE = 7016,    // sum > balance
  E_NOTHING_PAYABLE = 7017, // no payee can be paid, or all amounts are zero
  E_OVERFLOW = 7018,        // amounts overflow u64
  E_STATE = 7019,           // not in the state that this needs (open, closing, not closing, not there)
  E_TOO_EARLY = 7020,       // grace, salt window or dispute delay not over
  E_CPI = 7021,             // a called program failed (today's runtime ends the transaction before this can be returned)
  E_CLOCK = 7022,           // the clock could not be read
  E_RENT = 7023,            // no lamports for the new account's rent
  E_BENEFICIARY = 7024,     // not the depositor of a client vault under this operator, or the operator itself, or its fee owner
  E_TOO_LATE = 7025,        // the closing, or the proposal's end, comes before this could take effect
};

#define MINIMUM_GRACE_S 3600
#define MAXIMUM_GRACE_S (90 * 86400) // nobody signs a vault that never opens again
#define SALT_WINDOW_SLOTS 1500
#define MAX_PAYEES 16
#define SYSTEM_ASSIGN 1
#define SYSTEM_TRANSFER 2
#define SYSTEM_ALLOCATE 8
#define TAG_CONFIG 1
#define TAG_VAULT 2
#define KIND_CLIENT 0
#define KIND_COLLATERAL 1
#define DISPUTE_DELAY_S 86400 // between proposing a slash and executing it; and how long it can be executed then
#define SLASH_MARGIN_S 3600   // what is left of a closing collateral's grace after the delay, at least

typedef struct { // 104 bytes
  u8 tag, bump, reserved[6];
  u8 admin[32];
  u8 capture_key[32];
  u8 fee_owner[32];
} Config;

typedef struct { // 304 bytes; a collateral's account goes on with a Slash
  u8 tag, bump, kind, reserved;
  u32 grace_s;
  u8 depositor[32];
  u8 config[32];
  u8 mint[32];
  u8 token_account[32];
  u8 signer[32];
  u8 next_signer[32];
  u8 chain_id[32];
  u8 roots[32];
  u64 salt;
  u64 settled;
  i64 close_at;       // 0: not closing
  i64 next_signer_at; // 0: no rotation pending
  u64 captures;
} Vault;

typedef struct { // 80 bytes
  u64 amount; // 0: none is proposed
  i64 execute_at;
  u8 evidence_root[32];
  u8 beneficiary[32]; // a wallet
} Slash;

typedef struct { // 384 bytes
  Vault vault;
  Slash slash;
} Collateral;

typedef struct { // one per invocation, in the zeroed heap
  Account accounts[MAX_ACCOUNTS];
  u64 count;
  const u8 *data;
  u64 data_length;
  const u8 *program_id;
  Clock clock;
  AccountMeta metas[8];
  Instruction instruction;
  Slice seeds[5];
  SignerSeeds signer_seeds;
  Slice hash_parts[8];
  u8 scratch[512];
  u8 digest[32];
  u8 address[32];
} Context;
#define C ((Context *)HEAP_START)

static const u8 CONFIG_SEED[8] = {'t', 'o', 'r', 'g', '-', 'o', 'p', '1'};
static const u8 VAULT_SEED[8] = {'t', 'o', 'r', 'g', '-', 'v', 'l', '1'};
static const u8 CAP_DOMAIN[16] = {'t', 'o', 'r', 'g', '-', 'c', 'a', 'p', '-', 'v', '1'};
static const u8 ORDER_DOMAIN[16] = {'t', 'o', 'r', 'g', '-', 'o', 'r', 'd', 'e', 'r', '-', 'v', '1'};

static const u8 SYSTEM_PROGRAM[32] = {0};
static const u8 TOKEN_PROGRAM[32] = {6,   221, 246, 225, 215, 101, 161, 147, 217, 203, 225, 70,  206, 235, 121, 172,
                                     28,  180, 133, 237, 95,  91,  55,  145, 58,  140, 245, 133, 126, 255, 0,   169};
static const u8 ATA_PROGRAM[32] = {140, 151, 37,  143, 78, 36,  137, 241, 187, 61, 16,  41,  20,  142, 13, 131,
                                   11,  90,  19,  153, 218, 255, 16,  132, 4,   142, 123, 216, 219, 233, 248, 89};
static const u8 ED25519_PROGRAM[32] = {3,  125, 70,  214, 124, 147, 251, 190, 18,  249, 66,  143, 131, 141, 64,  255,
                                       5,  112, 116, 73,  39,  244, 138, 100, 252, 202, 112, 68,  128, 0,   0,   0};
static const u8 INSTRUCTIONS_SYSVAR[32] = {6,  167, 213, 23,  24,  123, 209, 102, 53,  218, 212, 4,   85,  253, 194, 192,
                                           193, 36, 198, 143, 33,  86,  117, 165, 219, 186, 203, 95,  8,   0,   0,   0};
