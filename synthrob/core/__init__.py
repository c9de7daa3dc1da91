"Foundations: errors and files, stages, training, several processes"
