// The operator's account: who administrates it, which key orders captures. Every vault belongs to one.
#pragma once
#include "../checks.h"

// Accounts: admin (signer, pays), config, system program.  Data: bump | rent u64 | capture key | fee owner
NOINLINE u64 init_config(void) {
  Account *a = C->accounts, *admin = &a[0], *target = &a[1];
  const u8 *bump = C->data, *rent = C->data + 1, *capture_key = C->data + 9, *fee_owner = C->data + 41;
  if (C->count < 3) return E_ACCOUNTS;
  if (C->data_length != 1 + 8 + 32 + 32) return E_DATA;
  if (!admin->is_signer) return E_SIGNER;
  C->seeds[0] = (Slice){CONFIG_SEED, 8};
  C->seeds[1] = (Slice){admin->key, 32};
  C->seeds[2] = (Slice){bump, 1};
  C->signer_seeds = (SignerSeeds){C->seeds, 3};
  u64 failed = create_account(admin, target, read_u64(rent), sizeof(Config));
  if (failed) return failed;
  Config *config = (Config *)target->data;
  config->tag = TAG_CONFIG;
  config->bump = *bump;
  copy(config->admin, admin->key, 32);
  copy(config->capture_key, capture_key, 32);
  copy(config->fee_owner, fee_owner, 32);
  return 0;
}

// Accounts: config (writable), admin (signer).  Data: new capture key
// At once: a capture key is rotated because it may be stolen. Orders that the old key signed are worth nothing from then on.
NOINLINE u64 set_capture_key(void) {
  Account *a = C->accounts;
  if (C->count < 2) return E_ACCOUNTS;
  if (C->data_length != 32) return E_DATA;
  Config *config = as_config(&a[0]);
  if (!config) return E_NOT_OURS;
  if (!a[1].is_signer || !same_key(a[1].key, config->admin)) return E_SIGNER;
  copy(config->capture_key, C->data, 32);
  return 0;
}
