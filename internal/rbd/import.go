//go:build !octopus

package rbd

/*
#include <rados/librados.h>
*/
import "C"

import (
	"github.com/ceph/go-ceph/rados"
	librbd "github.com/ceph/go-ceph/rbd"
)

// requiredRelease returns the first number of the oldest release of Ceph that an OSD of the cluster may be of. It implements:
// int rados_get_min_compatible_osd(rados_t cluster, int8_t *require_osd_release).
func requiredRelease(ioctx *rados.IOContext) (int, error) {
	var release C.int8_t
	cluster := C.rados_ioctx_get_cluster(C.rados_ioctx_t(ioctx.Pointer()))
	err := codeErr(int(C.rados_get_min_compatible_osd(cluster, &release)))
	return int(release), err
}

func prepareImport(source string, ioctx *rados.IOContext, name string, opts *librbd.ImageOptions) error {
	return librbd.MigrationPrepareImport(source, ioctx, name, opts)
}

func executeMigration(ioctx *rados.IOContext, name string) error {
	return librbd.MigrationExecute(ioctx, name)
}

func commitMigration(ioctx *rados.IOContext, name string) error {
	return librbd.MigrationCommit(ioctx, name)
}

func abortMigration(ioctx *rados.IOContext, name string) error {
	return librbd.MigrationAbort(ioctx, name)
}

func migrationStatus(ioctx *rados.IOContext, name string) (state, description string, err error) {
	status, err := librbd.MigrationStatus(ioctx, name)
	if err != nil {
		return "", "", err
	}
	states := map[librbd.MigrationImageState]string{
		librbd.MigrationImageError:     "error",
		librbd.MigrationImagePreparing: "preparing",
		librbd.MigrationImagePrepared:  "prepared",
		librbd.MigrationImageExecuting: "executing",
		librbd.MigrationImageExecuted:  "executed",
		librbd.MigrationImageAborting:  "aborting",
	}
	if state = states[status.State]; state == "" {
		state = "unknown"
	}
	return state, status.StateDescription, nil
}
