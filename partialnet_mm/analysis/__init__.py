# Copyright (c) PartialNet-MM contributors. Licensed under Apache-2.0.
