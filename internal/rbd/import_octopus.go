//go:build octopus

package rbd

import (
	"fmt"

	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// This file stands for import.go where librbd's headers are older than Ceph 16, which brought rbd_migration_prepare_import.

func tooOld() error { return fmt.Errorf("%w by librbd before Ceph %d", ErrUnsupported, importRelease) }

func requiredRelease(*rados.IOContext) (int, error)                              { return 0, tooOld() }
func prepareImport(string, *rados.IOContext, string, *librbd.ImageOptions) error { return tooOld() }
func executeMigration(*rados.IOContext, string) error                            { return tooOld() }
func commitMigration(*rados.IOContext, string) error                             { return tooOld() }
func abortMigration(*rados.IOContext, string) error                              { return tooOld() }
func migrationStatus(*rados.IOContext, string) (state, description string, err error) {
	return "", "", tooOld()
}
