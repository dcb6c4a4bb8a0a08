// Package kvcache holds keys and values: budgets of memory, arenas outside the heap, shards of pages, and the receipts by
// which two holders know that they hold the same.
package kvcache
