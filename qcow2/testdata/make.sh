#!/bin/sh
# Makes the small images that the fuzz tests start from, in the current folder.
set -eu
rm -f version2.qcow2 zstd.qcow2 overlay.qcow2
qemu-img create -q -f qcow2 -o cluster_size=512,compat=0.10 version2.qcow2 64k
qemu-io -f qcow2 -c 'write -q -c -P 1 0 512' -c 'write -q -c -P 2 1k 512' -c 'write -q -P 3 8k 3k' version2.qcow2
qemu-img create -q -f qcow2 -o cluster_size=1k,compression_type=zstd zstd.qcow2 40k
qemu-io -f qcow2 -c 'write -q -c -P 1 0 1k' -c 'write -q -c -P 2 8k 1k' -c 'write -q -P 3 12k 2k' -c 'write -q -z 16k 1k' zstd.qcow2
qemu-img snapshot -c one zstd.qcow2
qemu-io -f qcow2 -c 'write -q -P 4 12k 1k' zstd.qcow2
qemu-img create -q -f qcow2 -o cluster_size=512 -b version2.qcow2 -F qcow2 overlay.qcow2 80k
qemu-io -f qcow2 -c 'write -q -z 1k 512' -c 'write -q -P 9 6k 512' -c 'write -q -c -P 5 70k 512' overlay.qcow2
